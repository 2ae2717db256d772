"""Memory for intermediate results that is used again and again."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from corevital.capture.chunk import BUFFER_BYTES, bytes_together


class Scratch:
    """One piece of memory, of the size of what is reduced at once, or of a tensor beyond that.

    On a CPU, a fresh page costs as long as what is computed in it.
    """

    def __init__(self) -> None:
        self._memory: Tensor | None = None

    def tensor(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A contiguous tensor of whatever values; it is the memory of the one before."""
        size = math.prod(shape)
        memory = self._memory
        fits = memory is not None and (memory.dtype, memory.device) == (dtype, device)
        if memory is None or not fits or memory.numel() < size:
            # All that is reduced at once, so that what a run holds does not grow with its rows.
            room = bytes_together(device) // dtype.itemsize
            # A loop may have its forward passes alone in inference mode: what is made there could
            # not be written to afterwards.
            with torch.inference_mode(False):
                memory = torch.empty(max(size, room), dtype=dtype, device=device)
            self._memory = memory
        return memory[:size].view(*shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return 0 if self._memory is None else self._memory.nbytes

    def keep_if_small(self) -> None:
        """Let go of memory that is an accelerator's, whose allocator keeps it, or a large piece."""
        memory = self._memory
        if memory is not None and (memory.device.type != "cpu" or memory.nbytes > BUFFER_BYTES):
            self._memory = None
