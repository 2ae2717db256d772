"""Attention collapse: heads that come to look at a single key."""

from __future__ import annotations

import numpy as np

from corevital.assess.observed import Series, mean
from corevital.record import AttentionColumns

MIN_TREND_STEPS = 4
MAX_BASELINE_STEPS = 5
MODERATE_RISE = 0.15
STRONG_RISE = 0.25
CATASTROPHIC_RATE = 0.70
MODERATE_RISE_SEVERITY = 0.2
STRONG_RISE_SEVERITY = 0.4
CATASTROPHIC_SEVERITY = 0.8
BEYOND_BASELINE_SEVERITY = 0.3


def collapse_rate(attention: AttentionColumns | None, without_choice: int = 0) -> Series:
    """Share of collapsed heads in each observed step, ``[<= S]`` in [0, 1].

    A step counts over the layers whose attention was observed in it (``entropy_mean`` is finite);
    steps without any are left out, and so are the first ``without_choice``, at which there was one
    key to see and no head could but look at it. Empty when attention was not captured.
    """
    if attention is None:
        return np.empty(0)
    seen = np.isfinite(attention.entropy_mean)
    seen[:without_choice] = False
    heads = np.where(seen, attention.heads, 0).sum(axis=1)
    collapsed = np.where(seen, attention.collapsed_heads, 0).sum(axis=1)
    steps = heads > 0
    rate: Series = np.clip(collapsed[steps] / heads[steps], 0.0, 1.0)
    return rate


def attention_collapse_severity(rate: Series, *, beyond_baseline: bool = False) -> float:
    """Severity in [0, 1] of collapse in ``rate`` ``[n]`` (see `collapse_rate`), 0.0 for none.

    Published CoreVital heuristic. Trend: the peak rate against the mean of the first
    min(5, n // 3) steps. Catastrophic: most heads collapsed on average over the generation. Against
    a calibration profile, ``beyond_baseline``: more heads of some layer collapsed than while
    calibrating.
    """
    severity = BEYOND_BASELINE_SEVERITY if beyond_baseline else 0.0
    if rate.size >= MIN_TREND_STEPS:
        baseline = rate[: min(MAX_BASELINE_STEPS, rate.size // 3)]
        rise = rate.max() - baseline.mean()
        if rise > STRONG_RISE:
            severity = max(severity, STRONG_RISE_SEVERITY)
        elif rise > MODERATE_RISE:
            severity = max(severity, MODERATE_RISE_SEVERITY)
    if mean(rate) > CATASTROPHIC_RATE:
        severity = CATASTROPHIC_SEVERITY
    return severity
