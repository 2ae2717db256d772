"""Whether a generation in progress has become worth observing in full."""

from __future__ import annotations

import numpy as np

from corevital.assess.early_warning import early_warning
from corevital.assess.flags import health_flags
from corevital.assess.profile import Profile
from corevital.record import (
    Captured,
    CaptureMode,
    CaptureReport,
    Floats,
    GenerationRecord,
    HiddenColumns,
    LogitColumns,
    ModelDescription,
)


def needs_full_capture(logits: LogitColumns, last_layer_cosine: Floats, profile: Profile) -> bool:
    """Whether a flag or an early warning has appeared.

    Args:
        logits: columns of the steps so far.
        last_layer_cosine: ``[S]``, of the same steps.
        profile: thresholds of the model's family.
    """
    record = _so_far(logits, last_layer_cosine)
    flags = health_flags(record, profile)
    return flags.nan_or_inf or flags.repetition_loop or early_warning(record, flags).score > 0.0


def _so_far(logits: LogitColumns, last_layer_cosine: Floats) -> GenerationRecord:
    steps = len(logits.entropy)
    captured = Captured(available=True)
    no_layers = np.empty((steps, 0), dtype=np.float32)
    return GenerationRecord(
        model=ModelDescription("", "", ""),
        capture=CaptureReport(CaptureMode.ON_RISK, captured, captured, captured, captured),
        prompt_tokens=0,
        token_ids=np.zeros(steps, dtype=np.int64),
        step_time_ns=np.zeros(steps, dtype=np.int64),
        start_time_ns=0,
        end_time_ns=0,
        logits=logits,
        hidden=HiddenColumns(
            layers=np.empty(0, dtype=np.int64),
            mean=no_layers,
            std=no_layers,
            l2_norm=no_layers,
            max_abs=no_layers,
            clip_fraction=no_layers,
            non_finite=np.empty((steps, 0), dtype=np.bool_),
            last_layer_cosine=last_layer_cosine,
        ),
    )
