"""How well scores tell failures."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from corevital.calibration.risk import Quality

Scores = NDArray[np.float64]
Failures = NDArray[np.bool_]

BINS: Final = 10


def auroc(scores: Scores, failures: Failures) -> float:
    """Area under the ROC curve of ``scores`` ``[N]``: the Mann-Whitney statistic.

    The share of pairs of a failure and another run in which the failure scores higher; ties count
    half (Hanley and McNeil 1982, doi:10.1148/radiology.143.1.7063747).

    Raises:
        ValueError: all runs failed, or none.
    """
    count = int(failures.sum())
    if count in (0, len(failures)):
        raise ValueError("AUROC needs failures and other runs")
    _, place, ties = np.unique(scores, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(ties) - (ties - 1) / 2
    ranks = float(middle_rank[place][failures].sum())
    pairs = count * (len(failures) - count)
    return (ranks - count * (count + 1) / 2) / pairs


def brier(probabilities: Scores, failures: Failures) -> float:
    """Mean squared difference of probability and outcome (Brier 1950); 0 is perfect."""
    return float(np.square(probabilities - failures).mean())


def reliability(
    probabilities: Scores, failures: Failures, bins: int = BINS
) -> tuple[Scores, Scores, NDArray[np.int64]]:
    """Mean probability, share of failures and number of runs of each bin, ``[bins]`` or fewer.

    The bins hold equally many runs, so that each says something (Nixon et al. 2019,
    arXiv:1904.01685), as far as runs with the same probability, which share a bin, allow.
    """
    _, place, ties = np.unique(probabilities, return_inverse=True, return_counts=True)
    middle = (np.cumsum(ties) - ties / 2) / len(probabilities)
    bin_of_run = (bins * middle).astype(np.int64)[place]
    parts = [np.flatnonzero(bin_of_run == each) for each in np.unique(bin_of_run)]
    return (
        np.array([probabilities[part].mean() for part in parts]),
        np.array([failures[part].mean() for part in parts]),
        np.array([len(part) for part in parts], dtype=np.int64),
    )


def ece(probabilities: Scores, failures: Failures, bins: int = BINS) -> float:
    """Expected calibration error (Naeini et al. 2015), with bins of equally many runs.

    The mean difference, over runs, of the probability said and the share of failures found in a
    bin; even a perfect score has some, because the shares of few runs scatter.
    """
    said, found, count = reliability(probabilities, failures, bins)
    return float((np.abs(said - found) * count).sum() / count.sum())


def quality(scores: Scores, failures: Failures, *, probabilities: bool) -> Quality:
    """All of these; calibration only where the scores are ``probabilities``."""
    if not probabilities:
        return Quality(auroc=auroc(scores, failures))
    return Quality(
        auroc=auroc(scores, failures), ece=ece(scores, failures), brier=brier(scores, failures)
    )
