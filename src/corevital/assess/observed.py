"""Statistics over what was observed: NaN and Inf entries are left out, never read as zero."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from corevital.record import LogitColumns

Series = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class LogitSeries:
    """The logit columns reduced to their observed steps, each ``[<= S]``, units as recorded.

    A column may be empty. Steps keep their order, so "the last five" are the last five observed.
    """

    entropy: Series
    surprisal: Series
    margin: Series
    top_k_mass: Series


def logit_series(logits: LogitColumns | None) -> LogitSeries:
    """Observed values of ``logits``; four empty series when logits were not captured."""
    if logits is None:
        empty = np.empty(0)
        return LogitSeries(entropy=empty, surprisal=empty, margin=empty, top_k_mass=empty)
    return LogitSeries(
        entropy=observed(logits.entropy),
        surprisal=observed(logits.surprisal),
        margin=observed(logits.margin),
        top_k_mass=observed(logits.top_k_mass),
    )


def observed(values: npt.NDArray[np.floating]) -> Series:
    """The finite entries of ``values`` (any shape), in order, as a float64 vector."""
    finite: Series = values[np.isfinite(values)].astype(np.float64)
    return finite


# The methods of an array would take three times as long: most of that is what leads to these sums.
def mean(values: Series) -> float:
    """Arithmetic mean of a vector; NaN when it is empty, so that every comparison is false."""
    return float(np.add.reduce(values)) / values.size if values.size else math.nan


def std(values: Series) -> float:
    """Sample standard deviation (n - 1) of a vector; NaN for fewer than two values."""
    if values.size < 2:
        return math.nan
    deviations = values - mean(values)
    return math.sqrt(float(np.add.reduce(deviations * deviations)) / (values.size - 1))


def column_mean(values: npt.NDArray[np.floating]) -> Series:
    """Mean of each column of ``[S, L]`` over its observed rows, ``[L]``; NaN for no rows."""
    seen = np.isfinite(values)
    return _ratio(np.where(seen, values, 0.0).sum(axis=0, dtype=np.float64), seen.sum(axis=0))


def column_std(values: npt.NDArray[np.floating]) -> Series:
    """Sample standard deviation (n - 1) of each column of ``[S, L]`` over its observed rows.

    Shape ``[L]``; NaN where fewer than two rows were observed.
    """
    seen = np.isfinite(values)
    deviations = np.where(seen, values, 0.0) - column_mean(values)
    squares = np.where(seen, deviations**2, 0.0).sum(axis=0)
    root: Series = np.sqrt(_ratio(squares, seen.sum(axis=0) - 1))
    return root


def _ratio(numerator: Series, denominator: npt.NDArray[np.integer]) -> Series:
    quotient = np.full(numerator.shape, np.nan)
    np.divide(numerator, denominator, out=quotient, where=denominator > 0)
    return quotient
