"""How much a figure would differ with other runs of the same kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from corevital.calibration.quality import Failures, Scores, auroc, ece

DRAWS: Final = 2000
_TAILS: Final = (2.5, 97.5)


class Interval(NamedTuple):
    """95 %."""

    low: float
    high: float


def bootstrap(
    measure: Callable[[np.ndarray], float], failed: Failures, draws: int = DRAWS
) -> Interval:
    """Percentile interval of ``measure`` over runs drawn with replacement (Efron 1979).

    ``measure`` gets the indices of the drawn runs ``[N]``; draws without both failures and other
    runs are left out.
    """
    random = np.random.default_rng(0)
    drawn = (random.integers(0, len(failed), len(failed)) for _ in range(draws))
    found = [measure(runs) for runs in drawn if 0 < failed[runs].sum() < len(runs)]
    return Interval(*np.percentile(found, _TAILS).tolist())


def auroc_interval(scores: Scores, failed: Failures, draws: int = DRAWS) -> Interval:
    """Of the AUROC of ``scores`` ``[N]``."""
    return bootstrap(lambda runs: auroc(scores[runs], failed[runs]), failed, draws)


def difference_interval(
    scores: Scores, others: Scores, failed: Failures, draws: int = DRAWS
) -> Interval:
    """Of the AUROC of ``scores`` minus that of ``others``, both ``[N]``, on the same runs."""
    return bootstrap(
        lambda runs: auroc(scores[runs], failed[runs]) - auroc(others[runs], failed[runs]),
        failed,
        draws,
    )


def perfect_ece(probabilities: Scores, draws: int = DRAWS) -> tuple[float, Interval]:
    """Mean and interval of the ECE if each run failed with just the probability that was said."""
    random = np.random.default_rng(0)
    found = [
        ece(probabilities, random.random(len(probabilities)) < probabilities) for _ in range(draws)
    ]
    return float(np.mean(found)), Interval(*np.percentile(found, _TAILS).tolist())
