"""Statistics of a few steps at a few layers, still on the device."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

MOST_STEPS: Final = 32
BUFFER_BYTES: Final = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Chunk:
    """``statistics`` ``[k, n, l, B]`` of ``n`` steps at ``l`` layer positions."""

    steps: tuple[int, ...]
    positions: tuple[int, ...]
    statistics: Tensor


def steps_together(bytes_per_step: int, most_steps: int) -> int:
    """How many steps are reduced together, so that what they hold stays bounded.

    Reducing several steps at once costs a fraction of reducing each: the launches of the
    operations, and their cold caches beside the model's weights, are shared.
    """
    return max(1, min(most_steps, BUFFER_BYTES // max(bytes_per_step, 1)))
