"""A forward pass of a custom loop that tries several tokens of each sequence."""

from __future__ import annotations

import torch
from torch import Tensor

from corevital.capture.transfer import moved


class Trial:
    """What such a forward pass showed, of which one row of each sequence counts.

    The rows of a sequence follow each other, as ``transformers`` has them of beams and of several
    answers. Which one counts is known when the sequence's token is.

    Args:
        token_ids: ``[B * n, 1]``, the token that each row tries.
        sequences: ``B``.

    Attributes:
        logits: ``[B * n, 1, V]`` of the newest position; ``None`` where they are not observed.
        states: by layer position, ``[B * n, 1, D]`` of the newest position.
    """

    def __init__(self, token_ids: Tensor, sequences: int) -> None:
        self._tried = token_ids.view(sequences, -1)
        self.logits: Tensor | None = None
        self.states: dict[int, Tensor] = {}

    def rows_of(self, token_ids: Tensor) -> Tensor:
        """The row ``[B]`` of each sequence that tried its token of ``[B, 1]``.

        It is the first of a sequence that tried no such token: ``tokens_of`` tells.
        """
        sequences, tried = self._tried.shape
        same = self._tried == moved(token_ids, self._tried.device)
        first = torch.arange(0, sequences * tried, tried, device=same.device)
        # Of a Boolean there is no argmax on every device.
        return first + same.to(torch.uint8).argmax(-1)

    def tokens_of(self, rows: Tensor) -> Tensor:
        """The tokens ``[B, 1]`` that these rows ``[B]`` tried."""
        return self._tried.reshape(-1, 1).index_select(0, rows)

    def logits_of(self, rows: Tensor) -> Tensor:
        """The logits ``[B, 1, V]`` of these rows ``[B]``; there have to be any."""
        assert self.logits is not None
        return self.logits.index_select(0, moved(rows, self.logits.device))

    def states_of(self, rows: Tensor) -> dict[int, Tensor]:
        """The states ``[B, 1, D]`` of these rows ``[B]``, by layer position."""
        return {
            position: states.index_select(0, moved(rows, states.device))
            for position, states in self.states.items()
        }
