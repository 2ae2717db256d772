"""Hidden-state statistics over all positions of an encoder's layer."""

from __future__ import annotations

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import BUFFER_BYTES
from corevital.capture.hidden import hidden_statistics


class PositionStatistics:
    """Reduces a layer's states over its positions, padding left out, as soon as they are there.

    Attributes:
        by_layer: ``[6, B]`` for every layer position seen, in the order of ``hidden_statistics``:
            means over positions, but of the largest absolute value the largest, and 1.0 for NaN or
            Inf at any position.
    """

    def __init__(self) -> None:
        self.by_layer: dict[int, Tensor] = {}

    @unaffected_by_autocast
    def observe(self, position: int, states: Tensor, valid: Tensor) -> None:
        """Take the output ``[B, P, D]`` of a layer; ``valid`` ``[B, P]`` is False at padding."""
        batch, length, width = states.shape
        valid = valid.to(states.device)
        step = max(1, BUFFER_BYTES // (4 * batch * width))
        sums = torch.zeros(6, batch, dtype=torch.float32, device=states.device)
        peak, non_finite = sums[3].clone(), sums[5].clone()
        for start in range(0, length, step):
            part = slice(start, start + step)
            statistics = hidden_statistics(states[:, part].float())
            # Padding may give NaN, which no weight of 0 removes.
            statistics = torch.where(valid[:, part], statistics, 0.0)
            sums += statistics.sum(-1)
            peak = torch.maximum(peak, statistics[3].amax(-1))
            non_finite = torch.maximum(non_finite, statistics[5].amax(-1))
        sums /= valid.sum(-1)
        sums[3], sums[5] = peak, non_finite
        self.by_layer[position] = sums
