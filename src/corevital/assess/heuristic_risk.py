"""Heuristic risk: one score in [0, 1] with the factors that make it up.

Factors, weights and order are the published CoreVital heuristic. It is additive and not
calibrated: a score is no probability of failure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from corevital.assess.flags import (
    ATTENTION_COLLAPSE,
    MID_LAYER_ANOMALY,
    NAN_OR_INF,
    REPETITION_LOOP,
    HealthFlags,
)
from corevital.assess.observed import LogitSeries, Series, logit_series, mean
from corevital.assess.signals import CompoundSignal
from corevital.record import GenerationRecord

ELEVATED_ENTROPY = "elevated_entropy"
ENTROPY_RISING = "entropy_rising"
LOW_CONFIDENCE_MARGIN = "low_confidence_margin"
LOW_TOP_K_MASS = "low_topk_mass"
ELEVATED_SURPRISAL = "elevated_surprisal"
COMPOUND_PREFIX = "compound:"

REPETITION_LOOP_RISK = 0.9
MID_LAYER_ANOMALY_RISK = 0.7
MIN_RISING_STEPS = 6
RISING_RATIO = 1.3


@dataclass(frozen=True, slots=True)
class RiskFactor:
    """A named part of the risk; ``contribution`` is what it adds to the factors before it."""

    name: str
    contribution: float


@dataclass(frozen=True, slots=True)
class HeuristicRisk:
    """``score`` in [0, 1]: the sum of the factors' contributions, at most 1."""

    score: float
    factors: tuple[RiskFactor, ...]


def heuristic_risk(
    record: GenerationRecord, flags: HealthFlags, signals: tuple[CompoundSignal, ...]
) -> HeuristicRisk:
    """Risk of the generation from its logits, health flags and compound signals.

    NaN or Inf decides alone. Otherwise the worst flag is the base, to which distribution
    statistics and compound signals add. What was not observed adds nothing.
    """
    factors = tuple(_factors(logit_series(record.logits), flags, signals))
    score = min(1.0, sum((factor.contribution for factor in factors), 0.0))
    return HeuristicRisk(score, factors)


def _factors(
    logits: LogitSeries, flags: HealthFlags, signals: tuple[CompoundSignal, ...]
) -> Iterator[RiskFactor]:
    if flags.nan_or_inf:
        yield RiskFactor(NAN_OR_INF, 1.0)
        return
    yield from _flag_factors(flags)
    yield from _distribution_factors(logits)
    for signal in signals:
        yield RiskFactor(COMPOUND_PREFIX + signal.name, signal.severity)


def _flag_factors(flags: HealthFlags) -> Iterator[RiskFactor]:
    """Flags do not add up: each contributes only what it exceeds the ones before it by."""
    base = 0.0
    for name, raised, severity in (
        (REPETITION_LOOP, flags.repetition_loop, REPETITION_LOOP_RISK),
        (MID_LAYER_ANOMALY, flags.mid_layer_anomaly, MID_LAYER_ANOMALY_RISK),
        (ATTENTION_COLLAPSE, flags.attention_collapse, flags.attention_collapse_severity),
    ):
        if raised:
            yield RiskFactor(name, max(0.0, severity - base))
            base = max(base, severity)


def _distribution_factors(logits: LogitSeries) -> Iterator[RiskFactor]:
    """Weight x badness in [0, 1] of each statistic, where it exceeds a floor."""
    for name, weight, badness, floor in (
        (ELEVATED_ENTROPY, 0.3, mean(logits.entropy) / 8.0, 0.05),
        (ENTROPY_RISING, 0.2, _relative_rise(logits.entropy) / 2.0, 0.0),
        (LOW_CONFIDENCE_MARGIN, 0.2, 1.0 - 5.0 * mean(logits.margin), 0.05),
        (LOW_TOP_K_MASS, 0.15, 1.0 - mean(logits.top_k_mass), 0.03),
        (ELEVATED_SURPRISAL, 0.1, mean(logits.surprisal), 0.02),
    ):
        contribution = weight * _unit(badness)
        if contribution > floor:
            yield RiskFactor(name, contribution)


def _relative_rise(entropy: Series) -> float:
    """Relative rise of the last third's mean over the first third's; 0.0 where it is no trend."""
    if entropy.size < MIN_RISING_STEPS:
        return 0.0
    third = entropy.size // 3
    first, last = mean(entropy[:third]), mean(entropy[-third:])
    return last / first - 1.0 if last > RISING_RATIO * first > 0.0 else 0.0


def _unit(value: float) -> float:
    """``value`` limited to [0, 1]; 0.0 for NaN, the mean of nothing."""
    return 0.0 if math.isnan(value) else min(1.0, max(0.0, value))
