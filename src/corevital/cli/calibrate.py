"""``corevital calibrate``: a baseline from healthy runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from corevital.calibration.baseline import Baseline
from corevital.calibration.build import LEAST_RUNS, TooFewRuns, summarize
from corevital.calibration.health import unhealthy
from corevital.calibration.quantities import Run, run_of
from corevital.cli.arguments import CalibrateOptions
from corevital.cli.calibration_file import (
    identity_of,
    journal_path,
    origin,
    output_file,
    write_whole,
)
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.journal import Journal
from corevital.cli.load import loaded_model
from corevital.cli.observe import observation_settings
from corevital.cli.prompt_file import LEFT_OUT, check_chat, counted, left_out, run_file
from corevital.cli.prompt_runs import PromptResult, journal_header
from corevital.cli.prompts import Prompt, read_prompts
from corevital.cli.source import locate
from corevital.record import CaptureMode
from corevital.settings import StepEvents

if TYPE_CHECKING:
    # Its module imports transformers, which has to wait until the loading is announced.
    from corevital.telemetry.pipeline import Observed


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
    with loaded_model(source, options.device, notes, debug=options.debug) as loaded:
        check_chat(loaded, prompts, options.prompts)
        header = journal_header("baseline", loaded, identity_of(loaded), prompts, options)
        journal = Journal(journal_path(out), header, restart=options.restart)
        results = run_file(loaded, prompts, options, settings, journal, _summary, notes)
        baseline = _baseline(results, origin(loaded, prompts, options, settings))
    write_whole(out, f"{baseline.model_dump_json()}\n".encode())
    journal.delete()
    _report(out, baseline)
    return 0


def _summary(prompt: Prompt, observed: Observed, text: str) -> dict[str, Any]:
    """The run, or why it is left out."""
    if (reason := unhealthy(observed.record, observed.assessment)) is not None:
        return {LEFT_OUT: reason}
    return {"run": run_of(observed.record).to_json()}


def _baseline(results: Sequence[PromptResult], made: dict[str, Any]) -> Baseline:
    reasons = Counter(reason for each in results if (reason := left_out(each)) is not None)
    runs = [Run.from_json(each.summary["run"]) for each in results if left_out(each) is None]
    try:
        common = summarize(runs)
    except TooFewRuns as error:
        raise CommandError(f"{error}; left out: {counted(reasons) or 'none'}") from error
    return Baseline(
        runs=len(runs),
        steps=sum(run.steps for run in runs),
        left_out=dict(reasons),
        lengths=common.lengths,
        limits=common.limits,
        distributions=common.distributions,
        **made,
    )


def _report(out: Path, baseline: Baseline) -> None:
    print(f"{out}: baseline of {baseline.model.name}, {out.stat().st_size / 1000:.0f} kB")
    print(f"{baseline.runs} healthy runs, {baseline.steps} tokens", end="")
    print(f"; left out: {counted(Counter(baseline.left_out))}" if baseline.left_out else "")
    print(f"Compare with it: corevital run --calibration {out}, or COREVITAL_CALIBRATION={out}")
