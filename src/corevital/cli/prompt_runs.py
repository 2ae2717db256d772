"""Runs many prompts under CoreVital and keeps a summary of each, so that it can be resumed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from corevital.calibration.identity import ModelIdentity
from corevital.cli.arguments import Decoding
from corevital.cli.calibration_file import conditions
from corevital.cli.errors import INTERRUPTED, CommandError, first_line, is_out_of_memory
from corevital.cli.generate import generate, prompt_inputs
from corevital.cli.journal import Journal
from corevital.cli.load import LoadedModel
from corevital.cli.observe import instrumented
from corevital.cli.prompts import Prompt
from corevital.version import __version__

if TYPE_CHECKING:
    # Its module imports transformers, which has to wait until the loading is announced.
    from corevital.telemetry.pipeline import Observed


@dataclass(frozen=True, slots=True)
class PromptResult:
    """What one prompt gave: its summary, or why it failed."""

    prompt: Prompt
    summary: Any = None
    error: str | None = None


Summarize = Callable[[Prompt, "Observed", str], Any]
"""Reduces a run, of a prompt and with the generated text, to what JSON can say."""


class Silent:
    """Providers that record everything and send nothing."""

    def __init__(self) -> None:
        nobody = Resource.get_empty()
        self.tracer_provider = TracerProvider(ALWAYS_ON, nobody, shutdown_on_exit=False)
        self.meter_provider = MeterProvider((), nobody, shutdown_on_exit=False)
        self.logger_provider = LoggerProvider(nobody, shutdown_on_exit=False)


def journal_header(
    task: str,
    loaded: LoadedModel,
    identity: ModelIdentity,
    prompts: Sequence[Prompt],
    decoding: Decoding,
) -> dict[str, Any]:
    """What two commands must have in common for one to go on where the other stopped."""
    return {
        "task": task,
        "version": __version__,
        "model": identity.model_dump(),
        **conditions(loaded, prompts, decoding).model_dump(),
    }


def run_prompts(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    settings: dict[str, Any],
    journal: Journal,
    summarize: Summarize,
    listen: Callable[[PromptResult], None],
) -> list[PromptResult]:
    """Run what the journal lacks; the results of all ``prompts``, in their order.

    ``listen`` gets each result as soon as it is there. A prompt that fails is not kept in the
    journal, so that it is tried again another time. The seed of each prompt is that of ``decoding``
    plus its place, whatever was run before it.

    Raises:
        CommandError: memory is used up, the journal cannot be written, or the user interrupted.
    """
    results: list[PromptResult] = []
    found: list[Observed] = []
    try:
        with instrumented(Silent(), settings, found.append):
            for number, prompt in enumerate(prompts):
                if number in journal.entries:
                    result = PromptResult(prompt, journal.entries[number])
                else:
                    seeded = replace(decoding, seed=((decoding.seed or 0) + number) % 2**32)
                    result = _run(loaded, prompt, seeded, summarize, found)
                    if result.error is None:
                        journal.add(number, result.summary)
                results.append(result)
                listen(result)
    except KeyboardInterrupt:
        raise CommandError(
            f"interrupted after {len(journal.entries)} of {len(prompts)} prompts; the same command "
            "goes on from there",
            INTERRUPTED,
        ) from None
    return results


def _run(
    loaded: LoadedModel,
    prompt: Prompt,
    decoding: Decoding,
    summarize: Summarize,
    found: list[Observed],
) -> PromptResult:
    """Run one prompt; ``found`` is where the instrumentation leaves what it observes."""
    found.clear()
    try:
        inputs = prompt_inputs(loaded, prompt.content)
        token_ids = generate(loaded, inputs, decoding, None)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return PromptResult(prompt, error=first_line(error))
    if not found:
        return PromptResult(prompt, error="it could not be observed (--debug shows why)")
    text = loaded.tokenizer.decode(token_ids, skip_special_tokens=True)
    return PromptResult(prompt, summarize(prompt, found[0], text))
