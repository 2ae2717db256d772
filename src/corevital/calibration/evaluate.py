"""Compares a calibrated risk with single estimators, on runs that it was not fitted to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from corevital.calibration.estimators import ESTIMATORS
from corevital.calibration.features import LOGITS
from corevital.calibration.fit_risk import (
    FOLDS,
    LabelledRuns,
    captures,
    check_runs,
    fit_scorer,
    folds,
)
from corevital.calibration.quality import Scores, quality
from corevital.calibration.risk import Evaluation
from corevital.calibration.scoring import FittedScorer, Observation, probabilities

HEURISTIC: Final = "heuristic"
UNCALIBRATED: Final = "uncalibrated"

Splits = Iterable[tuple[NDArray[np.int64], NDArray[np.int64]]]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of all runs by what was fitted without them.

    ``calibrated`` holds probabilities ``[N]`` for each amount of capture, the fullest first, under
    the names of its groups of features; ``others`` scores ``[N]`` that need no fitting.
    """

    calibrated: dict[str, Scores]
    others: dict[str, Scores]

    @property
    def fullest(self) -> Scores:
        """The probabilities from everything that was captured."""
        return next(iter(self.calibrated.values()))

    def best_other(self, failed: NDArray[np.bool_]) -> str:
        """The other score that ranks best."""
        return max(
            self.others,
            key=lambda name: quality(self.others[name], failed, probabilities=False).auroc,
        )


def held_out(
    runs: LabelledRuns,
    others: dict[str, Scores],
    splits: Splits | None = None,
    listen: Callable[[], None] = lambda: None,
) -> HeldOut:
    """Score every run by scorers that were fitted without it, or any run of its prompt.

    Args:
        runs: labelled runs, each with its logits observed.
        others: further scores of the runs ``[N]`` by name, the published heuristic's, say.
        splits: indices to fit to and to score; by default grouped cross-validation.
        listen: called after each split.

    Raises:
        TooFewLabels: there is nothing to learn.
        ValueError: a run's logits were not observed.
    """
    check_runs(runs)
    if not all(LOGITS in each.groups for each in runs.observations):
        raise ValueError("the logits of every run must have been observed")
    amounts = captures(runs)
    calibrated = {"+".join(groups): np.full(len(runs), np.nan) for groups in amounts}
    for fitted, scored in folds(runs) if splits is None else splits:
        known, unseen = runs[fitted], runs[scored].observations
        scorers = [FittedScorer(fit_scorer(known, groups)) for groups in amounts]
        for place, groups in enumerate(amounts):
            log_odds = _log_odds(scorers[place:], unseen)
            calibrated["+".join(groups)][scored] = probabilities(log_odds, len(known))
        listen()
    single = {
        name: np.array([each.estimators[name] for each in runs.observations])
        for name in ESTIMATORS
        if all(name in each.estimators for each in runs.observations)
    }
    return HeldOut(calibrated, others | single)


def _log_odds(scorers: list[FittedScorer], observations: Sequence[Observation]) -> Scores:
    """Of each observation ``[N]``, by the first scorer that applies to it."""
    log_odds = np.full(len(observations), np.nan)
    for scorer in reversed(scorers):
        places = [place for place, each in enumerate(observations) if scorer.applies_to(each)]
        if places:
            log_odds[places] = scorer.log_odds([observations[place] for place in places])
    return log_odds


def evaluation(scores: HeldOut, failed: NDArray[np.bool_]) -> Evaluation:
    """The quality of every score; the heuristic and the default score are read as probabilities."""
    return Evaluation(
        folds=FOLDS,
        calibrated={
            name: quality(values, failed, probabilities=True)
            for name, values in scores.calibrated.items()
        },
        others={
            name: quality(values, failed, probabilities=name in (HEURISTIC, UNCALIBRATED))
            for name, values in scores.others.items()
        },
    )
