"""Health flags: the yes-or-no findings of one generation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from corevital.assess.anomaly import mid_layer_anomaly
from corevital.assess.collapse import attention_collapse_severity, collapse_rate
from corevital.assess.divergence import Divergence
from corevital.assess.observed import logit_series
from corevital.assess.profile import Profile
from corevital.assess.repetition import repetition_loop
from corevital.record import (
    AttentionColumns,
    EncoderAttention,
    EncoderHidden,
    EncoderSummary,
    GenerationRecord,
    HiddenColumns,
)

NAN_OR_INF = "nan_or_inf"
REPETITION_LOOP = "repetition_loop"
MID_LAYER_ANOMALY = "mid_layer_anomaly"
ATTENTION_COLLAPSE = "attention_collapse"


@dataclass(frozen=True, slots=True)
class HealthFlags:
    """What is wrong with a generation; all False and zero when nothing is.

    ``attention_collapse_severity`` lies in [0, 1] and is 0.0 without collapse.
    ``high_entropy_steps`` counts steps above the profile's ``high_entropy_bits``.
    """

    nan_or_inf: bool = False
    repetition_loop: bool = False
    mid_layer_anomaly: bool = False
    attention_collapse: bool = False
    attention_collapse_severity: float = 0.0
    high_entropy_steps: int = 0


def health_flags(
    record: GenerationRecord, profile: Profile, divergence: Divergence | None = None
) -> HealthFlags:
    """Flags of ``record`` under ``profile``'s thresholds (published CoreVital heuristics).

    A part that was not captured raises no flag. Only self-attention can collapse: a translation may
    well look at one word of its source at a time. Logits are captured at every step or at none, so
    a NaN among their columns is a NaN of the model's.
    """
    hidden, attention = record.hidden, record.attention
    severity = attention_collapse_severity(
        collapse_rate(attention, record.steps_without_choice),
        beyond_baseline=divergence is not None and divergence.more_collapsed_heads,
    )
    entropy = logit_series(record.logits).entropy
    return HealthFlags(
        nan_or_inf=any(bool(part.non_finite.any()) for part in _parts(record))
        or (record.logits is not None and bool(np.isnan(record.logits.entropy).any())),
        repetition_loop=hidden is not None
        and repetition_loop(hidden.last_layer_cosine, profile.repetition_cosine),
        mid_layer_anomaly=hidden is not None and mid_layer_anomaly(hidden, profile.l2_multiplier),
        attention_collapse=severity > 0.0,
        attention_collapse_severity=severity,
        high_entropy_steps=int(np.count_nonzero(entropy > profile.high_entropy_bits)),
    )


def _parts(
    record: GenerationRecord,
) -> list[HiddenColumns | AttentionColumns | EncoderHidden | EncoderAttention]:
    """Everything of a record whose layers can hold NaN or Inf."""
    encoder = record.encoder if record.encoder is not None else EncoderSummary()
    parts = (
        record.hidden,
        record.attention,
        record.cross_attention,
        encoder.hidden,
        encoder.attention,
    )
    return [part for part in parts if part is not None]
