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


def bytes_together(device: torch.device) -> int:
    """How much is reduced at once: what a CPU's caches hold, or what is worth a launch."""
    return _CACHED_BYTES if device.type == "cpu" else BUFFER_BYTES


def steps_together(bytes_per_step: int, most_steps: int, most_bytes: int = BUFFER_BYTES) -> int:
    """How many steps are reduced together, so that what they hold stays bounded.

    Reducing several steps at once costs a fraction of reducing each: the launches of the
    operations, and their cold caches beside the model's weights, are shared.
    """
    return max(1, min(most_steps, most_bytes // max(bytes_per_step, 1)))
