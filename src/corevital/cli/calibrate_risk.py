"""``corevital calibrate-risk``: the probability of failure, from labelled runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from corevital.calibration.diagram import png, reliability_figure
from corevital.calibration.evaluate import HEURISTIC, HeldOut, evaluation, held_out
from corevital.calibration.fit_risk import (
    FOLDS,
    LEAST_RUNS,
    TooFewLabels,
    check_labels,
    fit_scorers,
)
from corevital.calibration.risk import Evaluation, RiskCalibration
from corevital.cli.arguments import CalibrateRiskOptions
from corevital.cli.calibration_file import (
    identity_of,
    journal_path,
    origin,
    output_file,
    write_whole,
)
from corevital.cli.errors import INTERRUPTED, USAGE, CommandError
from corevital.cli.evaluation_table import evaluation_table, score_name
from corevital.cli.journal import Journal
from corevital.cli.labels import Label, read_labels
from corevital.cli.load import loaded_model, warner
from corevital.cli.observe import observation_settings
from corevital.cli.progress import progress
from corevital.cli.prompt_file import check_chat, run_file
from corevital.cli.prompt_runs import journal_header
from corevital.cli.prompts import read_prompts, without_fields
from corevital.cli.risk_runs import RiskRuns, risk_runs, risk_summary
from corevital.cli.source import locate
from corevital.record import CaptureMode
from corevital.settings import StepEvents


def calibrate_risk(options: CalibrateRiskOptions) -> int:
    """Run the prompts, compare scores, write the calibration, and return the exit status.

    Raises:
        CommandError: what was asked for cannot be done, was interrupted, or another score ranks
            as well.
    """
    # Neither the scores to compare with nor the runs may come from another calibration.
    settings = observation_settings(CaptureMode.FULL, calibration=())
    settings["step_events"] = StepEvents.NONE
    prompts = read_prompts(options.prompts, options.limit, objects=True)
    labels = read_labels(options.prompts, prompts)
    _check_labels(labels)
    out, diagram = _outputs(options)
    source = locate(options.model)
    notes = Console(file=sys.stderr)
    with loaded_model(source, options.device, notes, debug=options.debug) as loaded:
        check_chat(loaded, prompts, options.prompts)
        # Labels are no part of the runs: they can be corrected without running anything again.
        asked = without_fields(prompts)
        header = journal_header("risk", loaded, identity_of(loaded), asked, options)
        journal = Journal(journal_path(out), header, restart=options.restart)
        results = run_file(loaded, asked, options, settings, journal, risk_summary, notes)
        runs = risk_runs(results, labels)
        try:
            scores, quality = _evaluated(runs, notes)
            _report_quality(runs, quality)
            _check_worth(scores, quality, runs, options, notes)
            made = origin(loaded, prompts, options, settings, "scikit-learn")
            calibration = _calibration(runs, quality, made)
            picture = _picture(calibration.model.name, runs, scores)
        except KeyboardInterrupt:
            raise CommandError(
                "interrupted; all runs are kept, and the same command goes on from there",
                INTERRUPTED,
            ) from None
    write_whole(out, f"{calibration.model_dump_json()}\n".encode())
    write_whole(diagram, picture)
    journal.delete()
    _report_files(out, diagram, calibration)
    return 0


def _check_labels(labels: Sequence[Label]) -> None:
    """Find out before anything is run, as far as can be known then, that labels are too few."""
    if len(labels) < LEAST_RUNS:
        raise CommandError(
            f"{len(labels)} prompts; a risk calibration needs at least {LEAST_RUNS} labelled runs",
            USAGE,
        )
    if all(label.said is not None for label in labels):
        try:
            check_labels(np.array([label.said for label in labels], dtype=bool))
        except TooFewLabels as error:
            raise CommandError(str(error), USAGE) from error


def _outputs(options: CalibrateRiskOptions) -> tuple[Path, Path]:
    """Where the calibration and its diagram are written."""
    out = output_file(options.out)
    beside = str(out.with_suffix(".png"))
    diagram = output_file(options.diagram or beside, "--diagram")
    if diagram == out:
        raise CommandError(f"the calibration and its diagram cannot both be {out}", USAGE)
    return out, diagram


def _evaluated(runs: RiskRuns, notes: Console) -> tuple[HeldOut, Evaluation]:
    done = 0
    with progress(notes, "folds", FOLDS) as show:

        def listen() -> None:
            nonlocal done
            done += 1
            show(done)

        try:
            scores = held_out(runs.labelled, runs.others, listen=listen)
        except TooFewLabels as error:
            raise CommandError(str(error)) from error
    return scores, evaluation(scores, runs.labelled.failed)


def _check_worth(
    scores: HeldOut,
    quality: Evaluation,
    runs: RiskRuns,
    options: CalibrateRiskOptions,
    notes: Console,
) -> None:
    """Refuse a calibration that ranks no better than a score that needs none."""
    best = scores.best_other(runs.labelled.failed)
    fullest = next(iter(quality.calibrated.values()))
    if fullest.auroc > quality.others[best].auroc:
        return
    finding = (
        f"the calibrated score ranks held-out runs no better than {score_name(best)} alone: "
        f"AUROC {fullest.auroc:.3f} against {quality.others[best].auroc:.3f}"
    )
    if not options.force:
        raise CommandError(f"{finding}; nothing is written (--force writes it, without new runs)")
    warner(notes)(finding)


def _calibration(runs: RiskRuns, quality: Evaluation, made: dict[str, Any]) -> RiskCalibration:
    failed = runs.labelled.failed
    return RiskCalibration(
        runs=len(failed),
        failures=int(failed.sum()),
        scorers=fit_scorers(runs.labelled),
        evaluation=quality,
        **made,
    )


def _picture(model: str, runs: RiskRuns, scores: HeldOut) -> bytes:
    failed, heuristic = runs.labelled.failed, scores.others[HEURISTIC]
    return png(reliability_figure(model, failed, scores.fullest, heuristic))


def _report_quality(runs: RiskRuns, quality: Evaluation) -> None:
    print(f"{runs}\n")
    print(f"On held-out prompts ({quality.folds} folds); AUROC 1, ECE 0 and Brier 0 are perfect:\n")
    console = Console()
    console.print(evaluation_table(quality, plain=not console.is_terminal))


def _report_files(out: Path, diagram: Path, calibration: RiskCalibration) -> None:
    size = out.stat().st_size / 1000
    print(f"\n{out}: risk calibration of {calibration.model.name}, {size:.0f} kB")
    print(f"{diagram}: its reliability diagram")
    print(f"Score with it: corevital run --calibration {out}, or COREVITAL_CALIBRATION={out}")
