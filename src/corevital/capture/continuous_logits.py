"""Reduces the logits of one step of a continuous batch, a row for each request."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.logits import logit_statistics
from corevital.capture.scratch import Scratch
from corevital.capture.transfer import PendingCopy

_BUFFER_BYTES: Final = 32 * 2**20
_FLOAT_BYTES: Final = 4


class BatchLogits:
    """Reduces rows of logits in memory that is used again at the next step."""

    def __init__(self, top_k: int) -> None:
        self._top_k = top_k
        self._memory = Scratch()
        self._scratch = Scratch()

    @torch.no_grad()
    @unaffected_by_autocast
    def reduce(self, logits: Tensor, token_ids: Tensor) -> PendingCopy:
        """Statistics of the tokens that were chosen, on their way to the host.

        Args:
            logits: ``[n, V]``, the model's raw logits; they are not changed.
            token_ids: ``[n]``, the chosen tokens, on the device of the logits.

        Returns:
            A copy under way of ``[4, n]``, as :func:`corevital.capture.logits.logit_statistics`
            gives them.
        """
        rows, vocabulary = logits.shape
        together = max(1, min(rows, _BUFFER_BYTES // (_FLOAT_BYTES * vocabulary)))
        reduced = []
        for first in range(0, rows, together):
            part = logits[first : first + together]
            own = self._memory.tensor(part.shape, torch.float32, part.device).copy_(part)
            scratch = self._scratch.tensor(part.shape, torch.float32, part.device)
            chosen = token_ids[first : first + together].long()
            reduced.append(logit_statistics(own, chosen, self._top_k, scratch))
        return PendingCopy(reduced[0] if len(reduced) == 1 else torch.cat(reduced, dim=1))
