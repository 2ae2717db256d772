"""Chooses which steps of a long generation get an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from corevital.record import GenerationRecord

_SHARE_OF_EXTREMES: Final = 0.5


def select_steps(
    record: GenerationRecord, high_entropy_bits: float, limit: int, onsets: Sequence[int] = ()
) -> list[int]:
    """The steps to record, in order, at most ``limit``.

    All of them when they fit. Else the first and the last; the flagged (NaN/Inf, entropy above
    ``high_entropy_bits``, ``onsets`` of loops) and extreme ones (highest surprisal and entropy), up
    to half of the limit; the rest evenly spread.
    """
    steps = record.steps
    if steps <= limit:
        return list(range(steps))
    if limit <= 0:
        return []
    chosen = dict.fromkeys([0, steps - 1][:limit])
    remarkable = int((limit - len(chosen)) * _SHARE_OF_EXTREMES)
    for step in _by_remarkableness(record, high_entropy_bits, onsets):
        if remarkable == 0:
            break
        if step not in chosen:
            chosen[step] = None
            remarkable -= 1
    free = np.setdiff1d(np.arange(steps), list(chosen))
    places = np.linspace(0, len(free) - 1, limit - len(chosen)).round().astype(int)
    return sorted([*chosen, *(int(step) for step in free[np.unique(places)])])


def _by_remarkableness(
    record: GenerationRecord, high_entropy_bits: float, onsets: Sequence[int]
) -> list[int]:
    """Steps that are flagged or extreme, the most remarkable first."""
    surprise: NDArray[np.floating] = np.zeros(record.steps)
    if record.logits is not None:
        entropy = np.nan_to_num(record.logits.entropy, nan=0.0)
        surprise = np.nan_to_num(record.logits.surprisal, nan=0.0) + entropy
        surprise += 1e3 * (entropy > high_entropy_bits)
    surprise[list(onsets)] += 1e4
    surprise += 1e6 * non_finite_steps(record)
    return [int(step) for step in np.argsort(-surprise, kind="stable")]


def non_finite_steps(record: GenerationRecord) -> NDArray[np.bool_]:
    """Steps ``[S]`` with NaN or Inf in the logits or any layer."""
    bad = np.zeros(record.steps, dtype=bool)
    if record.logits is not None:
        bad |= np.isnan(record.logits.entropy)
    for columns in (record.hidden, record.attention, record.cross_attention):
        if columns is not None:
            bad |= columns.non_finite.any(axis=1)
    return bad
