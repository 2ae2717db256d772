"""What one run is to observe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corevital.intervention import Intervention
from corevital.record import Bools, CaptureMode, Floats, GenerationRecord, Ints, LogitColumns

Escalate = Callable[[LogitColumns, Floats], bool]
"""Decides from the logit columns and last-layer cosines so far, of one sequence, whether to
observe everything from now on."""


CaughtInLoop = Callable[[Ints, NDArray[np.floating] | None], tuple[Bools, Bools]]
"""Which texts ``[B, n]`` are caught in a loop at their last token, and which may be after the next
one, from them and the lag cosines ``[m, B, LAGS]`` of their newest steps if known."""

RiskSoFar = Callable[[GenerationRecord, bool], float]
"""The risk score of a record that ends here, of which it is known whether it has looped."""


@dataclass(frozen=True, slots=True)
class InterventionPlan:
    """What to stop a generation for, and how that is told.

    ``newest_tokens`` are enough for ``caught_in_loop``; ``needs_layers`` says whether ``risk`` is
    told from all layers, attention and the prompt too.
    """

    intervention: Intervention
    caught_in_loop: CaughtInLoop
    newest_tokens: int
    risk: RiskSoFar
    needs_layers: bool


@dataclass(frozen=True, slots=True)
class CapturePlan:
    """How much to observe. ``prompt_max_tokens`` bounds the prompts that prompt telemetry reads."""

    mode: CaptureMode
    top_k: int = 10
    prompt: bool = True
    prompt_max_tokens: int = 1024
    escalate: Escalate | None = None
    intervention: InterventionPlan | None = None
