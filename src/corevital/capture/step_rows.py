"""What steps leave until several are reduced together."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from corevital.capture.scratch import Scratch
from corevital.capture.transfer import moved

# So many numbers one thread of a CPU copies as fast as several.
_FEW: Final = 2**18


class StepRows:
    """The rows of some tensors of each step, one behind the other, in memory that is kept.

    Held themselves, the application's memory would grow and shrink by as much, to be given back to
    the system and asked for again all the time; and a compiled forward pass writes over them.

    Attributes:
        rows: ``[n, R, ...]``, the ``R`` rows of all tensors of ``n`` steps.
    """

    def __init__(
        self, memory: Scratch, steps: int, first: list[Tensor], dtype: torch.dtype
    ) -> None:
        """Room for so many steps that leave tensors ``[B, ...]`` like those of the first."""
        last = first[-1]
        shape = (steps, len(first) * last.shape[0], *last.shape[1:])
        self.rows = memory.tensor(shape, dtype, last.device)
        self._places = self.rows.unbind()
        kind = dtype, last.device
        self._alike = all((tensor.dtype, tensor.device) == kind for tensor in first)
        # After a forward pass the caches hold the model's weights: of little that is to be copied,
        # torch takes longer to get its own code back than to copy.
        numbers = math.prod(shape[1:])
        few = kind == (torch.float32, torch.device("cpu")) and numbers <= _FEW
        self._bytes_of_step = numbers * dtype.itemsize
        self._bytes = self.rows.numpy().data.cast("B") if few else None

    def __len__(self) -> int:
        """For how many steps there is room."""
        return len(self._places)

    def put(self, place: int, tensors: list[Tensor]) -> None:
        """Copy what one step leaves."""
        target = self._places[place]
        if len(tensors) > 1 and self._alike:
            torch.cat(tensors, out=target)
        elif len(tensors) > 1:
            # Converted together: on an accelerator, each conversion is a launch.
            target.copy_(torch.cat([moved(tensor, target.device) for tensor in tensors]))
        elif self._bytes is not None and _is_plain(tensors[0]):
            # Slices of buffers of one dimension are copied as fast as memory is.
            size = self._bytes_of_step
            self._bytes[place * size : (place + 1) * size] = tensors[0].numpy().data.cast("B")
        else:
            target.copy_(tensors[0], non_blocking=target.device.type != "cpu")


def _is_plain(tensor: Tensor) -> bool:
    """Whether its memory is nothing but its numbers, in their order."""
    return type(tensor) is Tensor and tensor.dtype == torch.float32 and tensor.is_contiguous()
