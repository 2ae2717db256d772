"""Whether a run has become risky, told from values that have reached the host."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corevital.capture.plan import Escalate
from corevital.capture.transfer import PendingCopy
from corevital.record import LogitColumns


class _Values(NamedTuple):
    """Logit columns ``[4, S, B]`` and last-layer cosines ``[S, B]``, on their way to the host."""

    columns: PendingCopy
    cosines: PendingCopy

    @property
    def arrived(self) -> bool:
        return self.columns.arrived and self.cosines.arrived


class RiskCheck:
    """Asks from time to time whether everything is to be observed.

    The device is never waited for: while the newest values are on their way, those of the time
    before are looked at.
    """

    def __init__(self, is_risky: Escalate) -> None:
        self._is_risky: Final = is_risky
        self._pending: _Values | None = None

    def holds(self, columns: Tensor, cosines: list[Tensor], states: NDArray[np.int64]) -> bool:
        """Whether some sequence is risky.

        Args:
            columns: ``[4, S, B]`` of the logits so far.
            cosines: ``[n, B]`` of the last layer's states, one for every few steps so far.
            states: the row ``[B]`` of the hidden states that each sequence has.
        """
        values, self._pending = self._pending, None
        if cosines:
            self._pending = _Values(PendingCopy(columns), PendingCopy(torch.cat(cosines)))
        if values is None or not values.arrived:
            values = self._pending
        return values is not None and values.arrived and self._holds(values, states)

    def _holds(self, values: _Values, states: NDArray[np.int64]) -> bool:
        columns, cosines = values.columns.array(), values.cosines.array()
        return any(
            self._is_risky(LogitColumns(*columns[:, :, row]), cosines[:, state])
            for row, state in enumerate(states)
        )
