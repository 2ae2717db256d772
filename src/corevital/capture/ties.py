"""Whether the forward passes of a loop are those of its tokens, by what they were given."""

from __future__ import annotations

import torch
from torch import Tensor

from corevital.capture.transfer import moved


class Ties:
    """Comparisons of what forward passes were given with the tokens that were accepted.

    The comparisons stay on the device until the generation is over.
    """

    def __init__(self) -> None:
        self._equal: list[Tensor] = []

    def add(self, given: Tensor, accepted: Tensor) -> None:
        """Token ids of the same shape, which have to be the same."""
        self._equal.append((given == moved(accepted, given.device)).all())

    def hold(self) -> bool:
        """Whether all were the same; waits for the device."""
        return not self._equal or bool(torch.stack(self._equal).all())
