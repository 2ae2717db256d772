"""Brings tensors from one device to another, or to the host."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def to_host(tensor: Tensor) -> NDArray[np.float32]:
    """A float array on the host; waits for the device."""
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array


def moved(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A tensor on another device, for what is computed there next.

    The host does not wait, unless it is where that is computed: it would read what has not arrived.
    """
    return tensor.to(device, dtype, non_blocking=device.type != "cpu")


class PendingCopy:
    """A copy to the host that is under way while the device goes on computing."""

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            self._host = torch.empty(
                tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True
            )
            self._host.copy_(tensor, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensor.device))
        else:
            self._host = tensor.cpu()

    @property
    def arrived(self) -> bool:
        """Whether the copy is complete; never waits."""
        return self._event is None or self._event.query()

    @property
    def tensor(self) -> Tensor:
        """The copy, on the host; to be read once it has arrived."""
        return self._host

    def wait(self) -> None:
        """Wait for the copy; the device goes on with whatever else it has to do."""
        if self._event is not None:
            self._event.synchronize()

    def array(self) -> NDArray[np.float32]:
        """The copied values; to be read once they have arrived."""
        values: NDArray[np.float32] = self._host.float().numpy()
        return values
