"""Fingerprint: a generation as one short vector, to compare and group generations by.

The elements and their order are version 2 of the published CoreVital fingerprint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from corevital.assess.flags import HealthFlags
from corevital.assess.observed import LogitSeries, Series, logit_series, mean, std
from corevital.assess.trend import slope
from corevital.record import GenerationRecord, LogitColumns

VERSION: Final = 2

NAMES: Final = (
    "entropy_mean",
    "entropy_std",
    "entropy_min",
    "entropy_max",
    "entropy_slope",
    "margin_mean",
    "margin_std",
    "margin_slope",
    "surprisal_mean",
    "surprisal_std",
    "surprisal_slope",
    "top_k_mass_mean",
    "top_k_mass_std",
    "risk",
    "high_entropy_share",
    "nan_or_inf",
    "reserved_16",
    "attention_collapse",
    "repetition_loop",
    "mid_layer_anomaly",
    "entropy_margin_correlation",
    "entropy_variation",
    "entropy_first_quarter_mean",
    "entropy_last_quarter_mean",
    "reserved_24",
)
"""What each element is, in order.

Entropies and surprisals are in bits, slopes per step, standard deviations with n - 1. ``risk`` is
the heuristic score; ``high_entropy_share`` the share of steps above the profile's threshold; flags
are 0.0 or 1.0. ``entropy_margin_correlation`` is Pearson's, over the steps that have both;
``entropy_variation`` the standard deviation divided by the mean. A quarter is n // 4 steps and
there is none below 4. The reserved elements are always 0.0: the published vector has nothing there
that a record could tell.
"""

Fingerprint = tuple[float, ...]
"""25 finite numbers, one for each of ``NAMES``."""

LIMIT: Final = 1e6
"""Largest absolute value of an element; that of a consistent record comes nowhere near."""

NOTHING_OBSERVED: Final[Fingerprint] = (0.0,) * len(NAMES)


def fingerprint(record: GenerationRecord, flags: HealthFlags, risk: float) -> Fingerprint:
    """The fingerprint of ``record``, whose flags and heuristic risk score these are.

    An element that cannot be computed, because nothing was observed or too few steps were, is 0.0.
    """
    series = logit_series(record.logits)
    elements = dict(_elements(series, record.logits, flags)) | {"risk": risk}
    return tuple(_bounded(elements.get(name, 0.0)) for name in NAMES)


def _elements(
    series: LogitSeries, logits: LogitColumns | None, flags: HealthFlags
) -> Iterator[tuple[str, float]]:
    entropy = series.entropy
    for name, values in (
        ("entropy", entropy),
        ("margin", series.margin),
        ("surprisal", series.surprisal),
        ("top_k_mass", series.top_k_mass),
    ):
        yield f"{name}_mean", mean(values)
        yield f"{name}_std", std(values)
        yield f"{name}_slope", slope(values)
    if entropy.size:
        yield "entropy_min", float(entropy.min())
        yield "entropy_max", float(entropy.max())
        yield "high_entropy_share", flags.high_entropy_steps / entropy.size
    yield "nan_or_inf", float(flags.nan_or_inf)
    yield "attention_collapse", float(flags.attention_collapse)
    yield "repetition_loop", float(flags.repetition_loop)
    yield "mid_layer_anomaly", float(flags.mid_layer_anomaly)
    if logits is not None:
        yield "entropy_margin_correlation", _correlation(logits)
    yield "entropy_variation", _variation(entropy)
    if quarter := entropy.size // 4:
        yield "entropy_first_quarter_mean", mean(entropy[:quarter])
        yield "entropy_last_quarter_mean", mean(entropy[-quarter:])


def _correlation(logits: LogitColumns) -> float:
    """Pearson correlation of entropy and margin in [-1, 1]; NaN where either is constant."""
    both = np.isfinite(logits.entropy) & np.isfinite(logits.margin)
    entropy = _unit_deviations(logits.entropy[both].astype(np.float64))
    margin = _unit_deviations(logits.margin[both].astype(np.float64))
    if entropy is None or margin is None:
        return math.nan
    return min(1.0, max(-1.0, float(entropy @ margin)))


def _unit_deviations(values: Series) -> Series | None:
    """Deviations from the mean, scaled to length 1; ``None`` for a constant."""
    # From two equal values on, the mean may differ from them by rounding.
    if values.size < 2 or values.min() == values.max():
        return None
    deviations = values - values.mean()
    unit: Series = deviations / np.linalg.norm(deviations)
    return unit


def _variation(values: Series) -> float:
    """Coefficient of variation; NaN where the mean is not above zero."""
    centre = mean(values)
    return std(values) / centre if centre > 0.0 else math.nan


def _bounded(value: float) -> float:
    return 0.0 if math.isnan(value) else min(LIMIT, max(-LIMIT, value))
