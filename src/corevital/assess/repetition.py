"""Repetition: the last layer says the same thing over and over."""

from __future__ import annotations

from corevital.record import Floats

REPETITION_STEPS = 5


def repetition_loop(last_layer_cosine: Floats, threshold: float) -> bool:
    """Whether the last five steps repeat one state (published CoreVital heuristic).

    ``last_layer_cosine`` ``[S]``: cosine of each step's last-layer state to that of the step
    before. Five states are compared by their four consecutive cosines, all of which must exceed
    ``threshold``; one that was not observed (NaN) is no evidence of a loop.
    """
    if len(last_layer_cosine) < REPETITION_STEPS:
        return False
    consecutive = last_layer_cosine[1 - REPETITION_STEPS :]
    return bool((consecutive > threshold).all())
