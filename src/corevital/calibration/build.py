"""Makes a baseline from healthy runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from corevital.calibration import sketch
from corevital.calibration.baseline import Distribution
from corevital.calibration.quantities import QUANTITIES, Key, Run, scales
from corevital.calibration.sketch import Counts, Values

LEAST_RUNS: Final = 10
"""With fewer runs, how far healthy runs are apart cannot be told."""
LIMIT_SHARE: Final = 0.99


class TooFewRuns(ValueError):
    """There are not enough healthy runs for a baseline."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What runs have in common: the fields of a `Baseline` that are computed."""

    lengths: list[int]
    limits: list[float]
    distributions: list[Distribution]


def summarize(runs: Sequence[Run]) -> Summary:
    """Distributions over ``runs``, and how far these are apart.

    Every run is compared with all the others (leave one out), at several lengths: only its first
    1, 2, 4, ... steps, as long as enough runs are that long. So a short run is later compared with
    what is usual for short runs, whose distributions are rough. Steps of one run resemble each
    other, so a formula for independent samples would take every run for an anomaly.

    Raises:
        TooFewRuns: there are fewer than `LEAST_RUNS` with steps.
    """
    used = [run for run in runs if run.steps]
    if len(used) < LEAST_RUNS:
        raise TooFewRuns(f"{len(used)} healthy runs; a baseline needs at least {LEAST_RUNS}")
    keys = tuple(dict.fromkeys(key for run in used for key in run.keys))
    lengths = list(_lengths([run.steps for run in used]))
    pooled = _pooled(used, keys)
    scale = scales(keys)
    distances = np.full((len(used), len(lengths), len(keys)), np.nan)
    for row, run in enumerate(used):
        buckets = run.aligned(keys)
        others = sketch.cumulative(pooled - sketch.tally(buckets))
        for column, length in enumerate(lengths):
            if run.steps >= length:
                part = sketch.cumulative(sketch.tally(buckets[:length]))
                distances[row, column] = sketch.wasserstein(part, others, scale)
    least = _tolerances(keys, lengths)
    squares = np.square(distances)
    spread = np.maximum(_root_mean(np.nansum(squares, axis=0), _count(squares)), least)
    return Summary(
        lengths,
        [float(f"{limit:.4g}") for limit in _limits(distances, least)],
        [
            Distribution.of(key, pooled[place], spread[:, place].tolist())
            for place, key in enumerate(keys)
            if pooled[place].any()
        ],
    )


def _lengths(steps: Sequence[int]) -> Iterator[int]:
    length = 1
    while sum(each >= length for each in steps) >= LEAST_RUNS:
        yield length
        length *= 2


def _pooled(runs: Sequence[Run], keys: Sequence[Key]) -> Counts:
    pooled: Counts = np.zeros((len(keys), sketch.SIZE), dtype=np.int64)
    for run in runs:
        pooled += sketch.tally(run.aligned(keys))
    return pooled


def _tolerances(keys: Sequence[Key], lengths: Sequence[int]) -> Values:
    """The least spread of each quantity at each length, ``[N, K]``."""
    quantities = [QUANTITIES[key.quantity] for key in keys]
    steady = np.asarray([quantity.tolerance for quantity in quantities])
    grains = np.asarray([quantity.grain for quantity in quantities])
    least: Values = np.maximum(steady, grains / np.asarray(lengths)[:, None])
    return least


def _limits(distances: Values, least: Values) -> Values:
    """How far healthy runs are apart at each length, in units of the *others'* spread, ``[N]``.

    ``distances`` is ``[R, N, K]``. By exchangeability a further healthy run lies beyond the largest
    of R such values with probability 1 / (R + 1), whatever their distribution (Vovk, Gammerman and
    Shafer, "Algorithmic Learning in a Random World", 2005: conformal prediction).
    """
    squares = np.square(distances)
    seen = np.isfinite(squares)
    rest = np.nansum(squares, axis=0) - np.where(seen, squares, 0.0)
    spread = np.maximum(_root_mean(rest, _count(squares) - seen), least)
    furthest: Values = np.where(seen, distances / spread, 0.0).max(axis=-1)
    compared = np.asarray(seen.any(axis=-1))
    limits = [
        np.quantile(furthest[compared[:, place], place], LIMIT_SHARE, method="higher")
        for place in range(furthest.shape[1])
    ]
    return np.maximum(np.asarray(limits, dtype=np.float64), 1.0)


def _count(values: Values) -> Counts:
    counts: Counts = np.isfinite(values).sum(axis=0)
    return counts


def _root_mean(squares: Values, counts: Counts) -> Values:
    root: Values = np.sqrt(np.maximum(squares, 0.0) / np.maximum(counts, 1))
    return root
