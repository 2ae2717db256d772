"""How a series changes from step to step."""

from __future__ import annotations

import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from corevital.assess.observed import Series


def slope(values: Series) -> float:
    """Least-squares slope of ``values`` ``[n]`` in units per step; NaN for fewer than two."""
    if values.size < 2:
        return math.nan
    centred_steps = np.arange(values.size) - (values.size - 1) / 2
    return float(centred_steps @ values / (centred_steps @ centred_steps))


def rolling_mean(values: Series, window: int) -> Series:
    """Mean of every ``window`` consecutive entries of ``values`` ``[n]``, ``[n - window + 1]``.

    Empty when there are fewer than ``window`` entries.
    """
    if values.size < window:
        return np.empty(0)
    means: Series = sliding_window_view(values, window).mean(axis=-1)
    return means
