"""Keeps the application's autocast out of CoreVital's own computations."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Final, ParamSpec, TypeVar

import torch

_DEVICE_TYPES: Final = ("cpu", "cuda", "mps", "xpu")
_P = ParamSpec("_P")
_R = TypeVar("_R")


def unaffected_by_autocast(compute: Callable[_P, _R]) -> Callable[_P, _R]:
    """``compute``, whose operations keep the types of their tensors.

    Under autocast, products of float32 tensors are as coarse as bfloat16, and on a CPU tensors of
    another 16-bit type than autocast's cannot be joined.
    """

    @functools.wraps(compute)
    def computed(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with ExitStack() as switched_off:
            for device_type in _DEVICE_TYPES:
                if torch.is_autocast_enabled(device_type):
                    switched_off.enter_context(torch.autocast(device_type, enabled=False))
            return compute(*args, **kwargs)

    return computed
