"""What one run is to observe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from corevital.record import CaptureMode, Floats, LogitColumns

Escalate = Callable[[LogitColumns, Floats], bool]
"""Decides from the logit columns and last-layer cosines so far, of one sequence, whether to
observe everything from now on."""


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """How much to observe. ``prompt_max_tokens`` bounds the prompts that prompt telemetry reads."""

    mode: CaptureMode
    top_k: int = 10
    prompt: bool = True
    prompt_max_tokens: int = 1024
    escalate: Escalate | None = None
