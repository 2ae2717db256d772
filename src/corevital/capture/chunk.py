"""Statistics of a few steps at a few layers, still on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

MOST_STEPS: Final = 32
BUFFER_BYTES: Final = 16 * 2**20
_CACHED_BYTES: Final = 2 * 2**20


@dataclass(frozen=True, slots=True)
class Chunk:
    """``statistics`` ``[k, n, l, B]`` of ``n`` steps at ``l`` layer positions."""

    steps: tuple[int, ...]
    positions: tuple[int, ...]
    statistics: Tensor


def join_newest(chunks: list[Chunk]) -> None:
    """Make one of the newest chunks of the last one's layers, once they are ``MOST_STEPS`` steps.

    A tensor of few numbers is mostly what describes it.
    """
    newest, steps = chunks[-1], 0
    for start in range(len(chunks) - 1, -1, -1):
        chunk = chunks[start]
        if chunk.positions == newest.positions:
            if len(chunk.steps) >= MOST_STEPS or not _alike(chunk.statistics, newest.statistics):
                return
            steps += len(chunk.steps)
        if steps >= MOST_STEPS:
            behind = chunks[start:]
            same = [each for each in behind if each.positions == newest.positions]
            others = [each for each in behind if each.positions != newest.positions]
            chunks[start:] = [*others, _joined(same)]
            return


def _alike(statistics: Tensor, others: Tensor) -> bool:
    """Whether both differ in their steps only."""
    if statistics.device != others.device:
        return False
    return (statistics.shape[0], *statistics.shape[2:]) == (others.shape[0], *others.shape[2:])


def _joined(chunks: list[Chunk]) -> Chunk:
    steps = tuple(step for chunk in chunks for step in chunk.steps)
    statistics = torch.cat([chunk.statistics for chunk in chunks], dim=1)
    return Chunk(steps, chunks[0].positions, statistics)


def bytes_together(device: torch.device) -> int:
    """How much is reduced at once: what a CPU's caches hold, or what is worth a launch."""
    return _CACHED_BYTES if device.type == "cpu" else BUFFER_BYTES


def steps_together(bytes_per_step: int, most_steps: int, most_bytes: int = BUFFER_BYTES) -> int:
    """How many steps are reduced together, so that what they hold stays bounded.

    Reducing several steps at once costs a fraction of reducing each: the launches of the
    operations, and their cold caches beside the model's weights, are shared.
    """
    return max(1, min(most_steps, most_bytes // max(bytes_per_step, 1)))
