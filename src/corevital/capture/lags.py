"""Cosines of each step's last-layer state to those of the steps before, at every lag."""

from __future__ import annotations

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.record import LAGS


class LagCosines:
    """Compares states with the last ``LAGS`` before them, which it keeps, normalised."""

    def __init__(self) -> None:
        self._recent: Tensor | None = None

    def reorder(self, rows: Tensor) -> None:
        """Row ``i`` of the next states follows row ``rows[i]`` ``[B]`` of those before."""
        if self._recent is not None:
            self._recent = self._recent.index_select(0, rows)

    @unaffected_by_autocast
    def of(self, states: Tensor) -> Tensor:
        """Cosines of the next states of the run, several steps in one matrix product.

        Args:
            states: ``[n, B, D]``, float32, of ``n`` consecutive steps.

        Returns:
            ``[n, B, LAGS]``, the cosine at lag ``k`` at index ``k - 1``; NaN where there is no such
            step, or where either vector is zero or not finite.
        """
        steps, rows, _ = states.shape
        unit = states / torch.linalg.vector_norm(states, dim=-1, keepdim=True)
        unit = unit.transpose(0, 1)
        context = unit if self._recent is None else torch.cat((self._recent, unit), dim=1)
        self._recent = context[:, -LAGS:]
        # Step i stands at place LAGS + i: the LAGS places before it are a band that moves one place
        # to the right with every step.
        places = LAGS + steps
        products = unit.new_full((rows, steps, places), torch.nan)
        products[..., -context.shape[1] :] = torch.bmm(unit, context.transpose(1, 2))
        band: Tensor = products.as_strided((steps, rows, LAGS), (places + 1, steps * places, 1))
        return band.flip(-1)
