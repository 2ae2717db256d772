"""Quantile sketches: histograms over logarithmic buckets that are the same everywhere.

The mapping is that of DDSketch (Masson, Rim and Lee, "DDSketch: a fast and fully-mergeable quantile
sketch with relative-error guarantees", PVLDB 12(12), 2019), whose buckets lie on one fixed grid
here. So sketches are merged by adding their counts, in any order and without loss, and their size
does not depend on how many values they hold.

Axes: ``B`` buckets, ``K`` sketches side by side, ``S`` values.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

Buckets = NDArray[np.int16]
Counts = NDArray[np.int64]
Values = NDArray[np.float64]

ACCURACY: Final = 0.01
"""Largest relative error of a value between ``LEAST`` and ``MOST``."""
LEAST: Final = 1e-3
"""Values up to here, zero and rounding errors below it among them, count as zero."""
MOST: Final = 1e9
"""Values above share the last bucket."""
NONE: Final = -1
"""The bucket of NaN and Inf, which no sketch counts."""

_GAMMA: Final = (1.0 + ACCURACY) / (1.0 - ACCURACY)
_LOG_GAMMA: Final = math.log(_GAMMA)
SIZE: Final = 1 + math.ceil(math.log(MOST / LEAST) / _LOG_GAMMA)
"""Number of buckets; the first is for zero."""

VALUES: Final[Values] = np.concatenate(
    ([0.0], LEAST * 2.0 * _GAMMA ** np.arange(1, SIZE) / (_GAMMA + 1.0))
)
"""The value that stands for each bucket, ``[B]``, ascending."""
DOUBLINGS: Final[Values] = np.log2(np.maximum(VALUES, LEAST))
"""Its base-2 logarithm, ``[B]``; differences on this scale are ratios."""


def bucket(values: ArrayLike) -> Buckets:
    """The bucket of each value, in the shape of ``values``."""
    given = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(given)
    positions = np.ceil(np.log(np.where(finite, given, 0.0).clip(LEAST, MOST) / LEAST) / _LOG_GAMMA)
    found: Buckets = np.where(finite, positions.clip(0, SIZE - 1), NONE).astype(np.int16)
    return found


def tally(buckets: Buckets) -> Counts:
    """The sketch of each column of ``buckets`` ``[S, K]``, ``[K, B]``."""
    width = buckets.shape[1]
    places = buckets.astype(np.int64) + np.arange(width) * SIZE
    counts = np.bincount(places[buckets != NONE], minlength=width * SIZE)
    sketches: Counts = counts.reshape(width, SIZE).astype(np.int64)
    return sketches


def quantile(counts: Counts, share: float) -> Values:
    """The lower ``share`` quantile of each sketch ``[..., B]``, ``[...]``; NaN for an empty one.

    It differs from the quantile of the values by at most `ACCURACY`, relatively.
    """
    total = counts.sum(axis=-1)
    rank = np.floor(share * (total - 1))
    position = (np.cumsum(counts, axis=-1) <= rank[..., None]).sum(axis=-1).clip(max=SIZE - 1)
    return np.where(total > 0, VALUES[position], np.nan)


def mean(counts: Counts, scale: Values = VALUES) -> Values:
    """The mean of each sketch ``[..., B]`` on a scale ``[B]``, ``[...]``; NaN for an empty one."""
    total = counts.sum(axis=-1)
    return np.where(total > 0, counts @ scale / np.maximum(total, 1), np.nan)


def cumulative(counts: Counts) -> Values:
    """The share of values up to each bucket, in the shape of ``counts``; NaN for an empty one."""
    running = np.cumsum(counts, axis=-1, dtype=np.float64)
    total = running[..., -1:]
    return np.where(total > 0, running / np.maximum(total, 1.0), np.nan)


def wasserstein(first: Values, second: Values, scale: Values = VALUES) -> Values:
    """Wasserstein-1 distance of distributions given by `cumulative` ``[..., B]``, ``[...]``.

    On a scale ``[..., B]``: how far values have to be moved on it, on average, to turn one
    distribution into the other. On a line it is the area between the cumulative distributions
    (Vallender, "Calculation of the Wasserstein distance between probability distributions on the
    line", Theory of Probability and its Applications 18(4), 1974). NaN where one is empty.
    """
    distance: Values = (np.abs(first - second)[..., :-1] * np.diff(scale)).sum(axis=-1)
    return distance
