"""``corevital calibrate``: a baseline from healthy runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from corevital.calibration.baseline import Baseline, Conditions
from corevital.calibration.build import LEAST_RUNS, TooFewRuns, summarize
from corevital.calibration.health import unhealthy
from corevital.calibration.identity import ModelIdentity
from corevital.calibration.quantities import Run, run_of
from corevital.cli.arguments import CalibrateOptions, Decoding
from corevital.cli.calibration_file import (
    identity_of,
    journal_path,
    output_file,
    write_calibration,
)
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.journal import Journal
from corevital.cli.load import LoadedModel, load_model, loading_status, warner
from corevital.cli.observe import observation_settings
from corevital.cli.progress import prompt_progress
from corevital.cli.prompt_runs import PromptResult, journal_header, run_prompts
from corevital.cli.prompts import Prompt, digest, read_prompts
from corevital.cli.quiet import quiet_libraries
from corevital.cli.source import locate
from corevital.record import CaptureMode
from corevital.settings import StepEvents, load_settings
from corevital.version import __version__

if TYPE_CHECKING:
    # Its module imports transformers, which has to wait until the loading is announced.
    from corevital.telemetry.pipeline import Observed

FAILED: Final = "error"


def calibrate(options: CalibrateOptions) -> int:
    """Run the prompts, write the baseline, and return the exit status.

    Raises:
        CommandError: what was asked for cannot be done, or was interrupted.
    """
    # A run must not be judged by another calibration while one is made.
    settings = observation_settings(CaptureMode.FULL, calibration=())
    settings["step_events"] = StepEvents.NONE
    prompts = read_prompts(options.prompts, options.limit)
    if len(prompts) < LEAST_RUNS:
        raise CommandError(
            f"{len(prompts)} prompts; a baseline needs at least {LEAST_RUNS} healthy runs", USAGE
        )
    out = output_file(options.out)
    source = locate(options.model)
    notes = Console(file=sys.stderr)
    with ExitStack() as stack:
        with loading_status(notes, source):
            if not options.debug:
                stack.enter_context(quiet_libraries(show_downloads=notes.is_terminal))
            loaded = load_model(source, options.device, warner(notes))
        identity = identity_of(loaded)
        header = journal_header("baseline", loaded, identity, prompts, options)
        journal = Journal(journal_path(out), header, restart=options.restart)
        results = _results(loaded, prompts, options, settings, journal, notes)
        baseline = _baseline(identity, loaded, prompts, options, settings, results)
    write_calibration(out, baseline.model_dump_json())
    journal.delete()
    _report(out, baseline)
    return 0


def _summary(prompt: Prompt, observed: Observed, text: str) -> dict[str, Any]:
    """The run, or why it is left out."""
    if (reason := unhealthy(observed.record, observed.assessment)) is not None:
        return {"left_out": reason}
    return {"run": run_of(observed.record).to_json()}


def _results(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    options: CalibrateOptions,
    settings: dict[str, Any],
    journal: Journal,
    notes: Console,
) -> list[PromptResult]:
    if journal.entries:
        notes.print(
            f"Going on after {len(journal.entries)} of {len(prompts)} prompts",
            style="dim",
            highlight=False,
        )
    with prompt_progress(notes, len(journal.entries), len(prompts)) as show:
        listen = _listener(options.prompts, warner(notes), show)
        return run_prompts(loaded, prompts, options, settings, journal, _summary, listen)


def _listener(
    path: str, warn: Callable[[str], None], show: Callable[[int], None]
) -> Callable[[PromptResult], None]:
    done = 0

    def listen(result: PromptResult) -> None:
        nonlocal done
        done += 1
        if (reason := _left_out(result)) is not None:
            detail = f": {result.error}" if result.error is not None else ""
            warn(f"{path}, line {result.prompt.line} is left out: {reason}{detail}")
        show(done)

    return listen


def _left_out(result: PromptResult) -> str | None:
    if result.error is not None:
        return FAILED
    reason: str | None = result.summary.get("left_out")
    return reason


def _baseline(
    identity: ModelIdentity,
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    options: CalibrateOptions,
    settings: dict[str, Any],
    results: Sequence[PromptResult],
) -> Baseline:
    left_out = Counter(reason for each in results if (reason := _left_out(each)) is not None)
    runs = [Run.from_json(each.summary["run"]) for each in results if _left_out(each) is None]
    try:
        common = summarize(runs)
    except TooFewRuns as error:
        raise CommandError(f"{error}; left out: {_counted(left_out) or 'none'}") from error
    return Baseline(
        model=identity,
        conditions=Conditions(
            prompts=digest(prompts),
            chat_template=bool(getattr(loaded.tokenizer, "chat_template", None)),
            device=loaded.device,
            dtype=loaded.dtype,
            **{each.name: getattr(options, each.name) for each in fields(Decoding)},
        ),
        capture={"mode": CaptureMode.FULL.value, "top_k": load_settings(**settings).top_k},
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        created_with={
            "corevital": __version__,
            **{name: version(name) for name in ("torch", "transformers")},
        },
        runs=len(runs),
        steps=sum(run.steps for run in runs),
        left_out=dict(left_out),
        lengths=common.lengths,
        limits=common.limits,
        distributions=common.distributions,
    )


def _counted(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} for {reason}" for reason, count in left_out.most_common())


def _report(out: Path, baseline: Baseline) -> None:
    print(f"{out}: baseline of {baseline.model.name}, {out.stat().st_size / 1000:.0f} kB")
    print(f"{baseline.runs} healthy runs, {baseline.steps} tokens", end="")
    print(f"; left out: {_counted(Counter(baseline.left_out))}" if baseline.left_out else "")
    print(f"Compare with it: corevital run --calibration {out}, or COREVITAL_CALIBRATION={out}")
