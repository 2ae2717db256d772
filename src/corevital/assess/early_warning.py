"""Early warning: signs, in the newest steps, that a generation is about to fail.

Names, conditions and severities are the published CoreVital heuristics.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corevital.assess.flags import (
    ATTENTION_COLLAPSE,
    MID_LAYER_ANOMALY,
    REPETITION_LOOP,
    HealthFlags,
)
from corevital.assess.observed import Series, logit_series, std
from corevital.assess.trend import rolling_mean
from corevital.record import GenerationRecord

WINDOW = 5

ENTROPY_ACCELERATING = "entropy_accelerating"
MARGIN_COLLAPSED = "margin_collapsed"
MARGIN_DECLINING = "margin_declining"
SURPRISAL_VOLATILE = "surprisal_volatile"
ENTROPY_MARGIN_DIVERGENCE = "entropy_margin_divergence"

SEVERITY = {
    ENTROPY_ACCELERATING: 0.7,
    MARGIN_COLLAPSED: 0.6,
    MARGIN_DECLINING: 0.5,
    SURPRISAL_VOLATILE: 0.5,
    ENTROPY_MARGIN_DIVERGENCE: 0.55,
    REPETITION_LOOP: 0.9,
    MID_LAYER_ANOMALY: 0.6,
    ATTENTION_COLLAPSE: 0.4,
}

MIN_ACCELERATION_STEPS = 2 * WINDOW
ACCELERATION_CHANGES = 3
COLLAPSED_MARGIN = 0.1
DECLINED_MARGIN_RATIO = 0.3
VOLATILE_VARIATION = 1.5
DIVERGENT_ENTROPY_BITS = 4.0
DIVERGENT_MARGIN = 0.3


@dataclass(frozen=True, slots=True)
class EarlyWarning:
    """``score`` in [0, 1], the largest severity among ``signals``; 0.0 when there are none."""

    score: float
    signals: tuple[str, ...]


def early_warning(record: GenerationRecord, flags: HealthFlags) -> EarlyWarning:
    """Warnings from the newest steps of ``record`` and from its ``flags``, in a fixed order.

    Warnings from the logits need five observed steps, an acceleration ten.
    """
    logits = logit_series(record.logits)
    collapsed = margin_collapsed(logits.margin)
    raised = {
        ENTROPY_ACCELERATING: entropy_accelerating(logits.entropy),
        MARGIN_COLLAPSED: collapsed,
        MARGIN_DECLINING: not collapsed and margin_declining(logits.margin),
        SURPRISAL_VOLATILE: surprisal_volatile(logits.surprisal),
        ENTROPY_MARGIN_DIVERGENCE: entropy_margin_divergence(logits.entropy, logits.margin),
        REPETITION_LOOP: flags.repetition_loop,
        MID_LAYER_ANOMALY: flags.mid_layer_anomaly,
        ATTENTION_COLLAPSE: flags.attention_collapse,
    }
    signals = tuple(name for name, is_raised in raised.items() if is_raised)
    return EarlyWarning(max((SEVERITY[name] for name in signals), default=0.0), signals)


def entropy_accelerating(entropy: Series) -> bool:
    """Whether ``entropy`` ``[n]``, in bits, rises, and rises faster.

    Smoothed by a five-step mean, the last three changes are all upward and the last of them is
    larger than the first.
    """
    if entropy.size < MIN_ACCELERATION_STEPS:
        return False
    changes = np.diff(rolling_mean(entropy, WINDOW))[-ACCELERATION_CHANGES:]
    return bool((changes > 0.0).all() and changes[-1] > changes[0])


def margin_collapsed(margin: Series) -> bool:
    """Whether every one of the last five of ``margin`` ``[n]`` is below 0.1."""
    return margin.size >= WINDOW and bool((margin[-WINDOW:] < COLLAPSED_MARGIN).all())


def margin_declining(margin: Series) -> bool:
    """Whether the last five of ``margin`` ``[n]`` have a mean below 0.3 of the first five's."""
    if margin.size < WINDOW:
        return False
    return bool(margin[-WINDOW:].mean() < DECLINED_MARGIN_RATIO * margin[:WINDOW].mean())


def surprisal_volatile(surprisal: Series) -> bool:
    """Whether the last five of ``surprisal`` ``[n]`` have a coefficient of variation above 1.5."""
    if surprisal.size < WINDOW:
        return False
    recent = surprisal[-WINDOW:]
    return bool(std(recent) > VOLATILE_VARIATION * recent.mean() > 0.0)


def entropy_margin_divergence(entropy: Series, margin: Series) -> bool:
    """Whether mean entropy is above 4 bits and mean margin above 0.3 over the last five steps."""
    if min(entropy.size, margin.size) < WINDOW:
        return False
    return bool(
        entropy[-WINDOW:].mean() > DIVERGENT_ENTROPY_BITS
        and margin[-WINDOW:].mean() > DIVERGENT_MARGIN
    )
