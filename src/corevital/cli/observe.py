"""Runs one generation under CoreVital."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from opentelemetry._logs import LoggerProvider
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider

from corevital.cli.arguments import RunOptions
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.export import Telemetry
from corevital.cli.generate import generate, prompt_inputs
from corevital.cli.load import LoadedModel
from corevital.cli.outcome import Outcome
from corevital.instrumentor import CoreVitalInstrumentor
from corevital.record import CaptureMode
from corevital.settings import SettingsError, load_settings

if TYPE_CHECKING:
    # Its module imports transformers, which has to wait until the loading is announced.
    from corevital.telemetry.pipeline import Observed


class Providers(Protocol):
    """Where the telemetry of what is run here goes."""

    @property
    def tracer_provider(self) -> TracerProvider:
        """For spans."""
        ...

    @property
    def meter_provider(self) -> MeterProvider:
        """For metrics."""
        ...

    @property
    def logger_provider(self) -> LoggerProvider:
        """For log events."""
        ...


def observation_settings(
    capture: CaptureMode | None, calibration: Sequence[str] | None = None
) -> dict[str, Any]:
    """What the instrumentation is told beside the environment.

    A generation is run here to be seen, so what would leave it unseen does not apply.

    Raises:
        CommandError: the environment has a setting that is not accepted, or switches the SDK off.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        raise CommandError("OTEL_SDK_DISABLED=true: nothing could be observed", USAGE)
    settings: dict[str, Any] = {"enabled": True, "capture_ratio": 1.0, "span_processor": True}
    if capture is not None:
        settings["capture"] = capture
    if calibration is not None:
        settings["calibration"] = tuple(calibration)
    try:
        load_settings(**settings)
    except SettingsError as error:
        raise CommandError(str(error), USAGE) from error
    return settings


def observe(
    loaded: LoadedModel,
    options: RunOptions,
    settings: dict[str, Any],
    telemetry: Telemetry,
    write: Callable[[str], None] | None,
) -> Outcome:
    """Generate; ``write`` gets the text as it comes. A run that is interrupted counts as ended.

    Raises:
        CommandError: it cannot be generated or observed.
        KeyboardInterrupt: it was interrupted before its first token.
    """
    found: list[Observed] = []
    interrupted = False
    with instrumented(telemetry, settings, found.append):
        inputs = prompt_inputs(loaded, options.prompt)
        try:
            token_ids = generate(loaded, inputs, options, write)
        except KeyboardInterrupt:
            if not found or not found[0].record.steps:
                raise
            interrupted, token_ids = True, found[0].record.token_ids.tolist()
    if not found:
        raise CommandError("the generation could not be observed (--debug shows why)")
    record, decode = found[0].record, loaded.tokenizer.decode
    profile = load_settings().profile_of(record.model.family)
    return Outcome(
        record=record,
        assessment=found[0].assessment,
        trace_id=f"{found[0].trace_id:032x}",
        span_id=f"{found[0].span_id:016x}",
        prompt=options.prompt,
        prompt_tokens=inputs["input_ids"].shape[-1],
        is_chat=loaded.has_chat_template,
        text=decode(token_ids, skip_special_tokens=True),
        token_texts=tuple(decode([token]) for token in record.token_ids.tolist()),
        device=loaded.device,
        dtype=loaded.dtype,
        high_entropy_bits=profile.high_entropy_bits,
        capture_seconds=telemetry.capture_seconds(),
        interrupted=interrupted,
    )


@contextmanager
def instrumented(
    providers: Providers, settings: dict[str, Any], listener: Callable[[Observed], None]
) -> Iterator[None]:
    """Instrument inside the block; ``listener`` gets what is found in every generation."""
    instrumentor = CoreVitalInstrumentor()
    if instrumentor.is_instrumented_by_opentelemetry:
        # As under opentelemetry-instrument: of two instrumentations the second would do nothing.
        instrumentor.uninstrument()
    instrumentor.instrument(
        tracer_provider=providers.tracer_provider,
        meter_provider=providers.meter_provider,
        logger_provider=providers.logger_provider,
        on_generation=listener,
        **settings,
    )
    try:
        yield
    finally:
        instrumentor.uninstrument()
