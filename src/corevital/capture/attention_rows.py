"""Attention statistics over all queries of a layer, a part of its weights at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from corevital.capture.attention_scores import head_statistics, log_visible, weight_statistics
from corevital.capture.transfer import moved


class RowStatistics:
    """Means over queries, padding left out, of what a decoding step shows of its one row.

    Attributes:
        by_layer: ``[8, B]`` for every layer position seen, in the order of ``head_statistics``. A
            head's entropies are means over queries, and it is collapsed or focused by its means;
            the concentrations are the largest and the smallest of any head and query.
    """

    def __init__(self, valid: Tensor) -> None:
        self._valid = valid
        self._sums: dict[tuple[int, ...], tuple[Tensor, Tensor, Tensor]] = {}
        self.by_layer: dict[int, Tensor] = {}

    def add(
        self, positions: tuple[int, ...], weights: Tensor, mask: Tensor | None, queries: slice
    ) -> None:
        """Take the weights ``[l, B, H, q, K]`` of some queries of the layers at ``positions``.

        ``mask`` is additive, broadcasting to ``[B, H, q, K]``, ``None`` if all keys are visible.
        """
        valid = moved(self._valid[:, None, queries], weights.device)
        concentration, entropy = weight_statistics(weights)
        entropy = entropy.clamp(min=0.0)
        normalized = (entropy / log_visible(mask, weights.shape[-1])).clamp(max=1.0)
        values = torch.stack((entropy, normalized, concentration))
        sums = torch.where(valid, values, 0.0).sum(-1)
        most = torch.where(valid, concentration, 0.0).amax((-2, -1))
        least = torch.where(valid, concentration, 1.0).amin((-2, -1))
        before = self._sums.get(positions)
        if before is not None:
            sums = before[0] + sums
            most, least = torch.maximum(before[1], most), torch.minimum(before[2], least)
        self._sums[positions] = (sums, most, least)

    def finish(self) -> None:
        """Every query has been seen: reduce over heads."""
        count = self._valid.sum(-1)[:, None]
        for positions, (sums, most, least) in self._sums.items():
            statistics = head_statistics(*(sums / moved(count, sums.device)))
            statistics[4], statistics[5] = most, least
            self.by_layer |= dict(zip(positions, statistics.unbind(1), strict=True))
        self._sums.clear()
