"""Devices that are not there: torch takes their tensors for those of an accelerator.

What is on one of them is computed on the CPU, and may not be mixed with what is on another. What is
brought to the host without waiting never arrives there. They are known to the whole process once
they are used, so that tests use them in one of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

KIND: Final = "pretended"

_aten = torch.ops.aten
_NOT_ARRIVED: Final = 99
_MOVES: Final = (_aten._to_copy.default, _aten.copy_.default)


class _Backend:
    """What torch and its users ask an accelerator's module."""

    is_available = is_initialized = staticmethod(lambda: True)
    device_count = staticmethod(lambda: 2)
    current_device = staticmethod(lambda: 0)
    get_rng_state = staticmethod(lambda device=None: torch.empty(0, dtype=torch.uint8))
    set_rng_state = staticmethod(lambda state, device=None: None)
    manual_seed_all = staticmethod(lambda seed: None)
    get_amp_supported_dtype = staticmethod(lambda: [torch.float32])
    _is_in_bad_fork = staticmethod(lambda: False)


class OnDevice(Tensor):
    """A tensor on such a device: ``value`` holds its numbers."""

    value: Tensor

    @staticmethod
    def __new__(cls: type[OnDevice], value: Tensor, device: torch.device) -> OnDevice:
        made: OnDevice = torch.Tensor._make_wrapper_subclass(
            cls,
            value.shape,
            strides=value.stride(),
            storage_offset=value.storage_offset(),
            dtype=value.dtype,
            device=device,
        )
        made.value = value
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
    # Any device takes single numbers of the host.
    devices = {each.device for each in tensors if isinstance(each, OnDevice) or each.dim() > 0}
    if func not in _MOVES and len(devices) > 1:
        raise RuntimeError(f"Expected all tensors of {func} on one device, not on {devices}")
    asked = kwargs.get("device")
    target = next(iter(devices), torch.device("cpu")) if asked is None else torch.device(asked)
    if target == torch.device(KIND):
        target = torch.device(KIND, 0)
    with _disable_current_modes():
        result = func(*tree_map(_really, args), **tree_map(_really, dict(kwargs)))
    written = [each for each in tensors if isinstance(each, OnDevice) and each.value is result]
    if written:
        # In place: the same tensor again.
        return written[0]
    if target.type != KIND:
        if func is _aten._to_copy.default and kwargs.get("non_blocking") and devices != {target}:
            result.fill_(_NOT_ARRIVED)
        return result
    return tree_map(lambda each: OnDevice(each, target) if type(each) is Tensor else each, result)


def _really(argument: Any) -> Any:
    if isinstance(argument, OnDevice):
        return argument.value
    pretended = isinstance(argument, torch.device) and argument.type == KIND
    return torch.device("cpu") if pretended else argument


class _Computing(TorchDispatchMode):
    """Makes tensors on such a device where there is none to begin with."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _compute(func, args, kwargs or {})


class _FromPythonAndBack(TorchFunctionMode):
    """What torch does below the level at which operations are dispatched."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Any = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if func is torch.tensor:
            device = given.pop("device", None)
            made = func(*args, **given)
            return made if device is None else made.to(device)
        if func is torch.Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].value.tolist()
        if func is torch.Tensor.__getitem__ and isinstance(args[0], OnDevice):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            device = args[0].device
            args = (
                args[0],
                tuple(
                    torch.tensor(part).to(device) if isinstance(part, list) else part
                    for part in index
                ),
            )
        return func(*args, **given)


@contextmanager
def pretended_devices() -> Iterator[tuple[str, str]]:
    """Two of them, by name, inside the block; once in a process."""
    _setup_privateuseone_for_python_backend(KIND, backend_module=_Backend())
    with _FromPythonAndBack(), _Computing():  # type: ignore[no-untyped-call]
        yield f"{KIND}:0", f"{KIND}:1"
