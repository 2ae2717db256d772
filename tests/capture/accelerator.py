"""Catches CoreVital waiting for an accelerator, on a machine that has none and on one that has.

What CoreVital causes is told from what the model and ``generate`` do by the stack: the nearest
frame of CoreVital's that does not just pass a call of the model's on.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from corevital.capture.observation import Observation

ACCELERATOR: Final = torch.device("cuda", 0)
HOST: Final = torch.device("cpu")

_READS: Final = (
    *("item", "tolist", "numpy", "cpu", "__array__", "__index__", "__int__", "__float__"),
    *("__bool__", "__contains__", "is_nonzero", "equal", "allclose"),
)
_FROM_PYTHON: Final = ("tensor", "as_tensor", "new_tensor")
_PASSES_ON: Final = frozenset(
    {
        "observed_layer_call.<locals>.__call__",
        "observed_loop.<locals>.observed",
        "observed_model_call.<locals>.__call__",
        "_observed.<locals>.attention",
        "_observed_call.<locals>.__call__",
        "GenerationRun._wrap.<locals>.attention",
        "InstrumentedGenerate._generate",
    }
)
_BY_DATA: Final = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


class Waits:
    """Where the code of ``package`` waited during a generation; once that is over, it may.

    ``calls`` counts what it asked of torch; ``on_host`` has the tensors that are not on the
    pretended accelerator.
    """

    def __init__(self, package: str) -> None:
        self._package = package
        self.found: list[str] = []
        self.calls = 0
        self.on_host = WeakIdKeyDictionary()
        self.finishing = False

    def is_observing(self) -> bool:
        """Whether that code is the cause of what torch is asked to do, within a generation."""
        return not self.finishing and self._cause() is not None

    def add(self, what: str) -> None:
        """Note a wait, and where."""
        frame = self._cause()
        assert frame is not None
        code = frame.f_code
        self.found.append(f"{what} in {code.co_qualname} ({code.co_filename}:{frame.f_lineno})")

    def _cause(self) -> FrameType | None:
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            if str(frame.f_globals.get("__name__")).startswith(self._package):
                return None if frame.f_code.co_qualname in _PASSES_ON else frame
            frame = frame.f_back
        return None


class PretendedAccelerator(TorchFunctionMode):
    """CoreVital believes that every tensor is on ``ACCELERATOR``, and may not wait for it.

    Only what it brought to the host on purpose, without waiting, is there.
    """

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = dict(kwargs or {})
        if not self._waits.is_observing():
            return func(*args, **given)
        self._waits.calls += 1
        name = getattr(func, "__name__", "")
        first_on_host = bool(args) and self._on_host(args[0])
        if getattr(func, "__self__", None) is torch.Tensor.device:
            return HOST if first_on_host else ACCELERATOR
        every = (*args, *given.values())
        there = ACCELERATOR in every
        host = not there and (HOST in every or "cpu" in every or not _has_tensor(every))
        self._look(name, args, given, from_host=first_on_host, to_host=host, there=there)
        given.pop("pin_memory", None)
        result = func(*map(_really, args), **{key: _really(each) for key, each in given.items()})
        if isinstance(result, Tensor) and (host or (first_on_host and not there)):
            self._waits.on_host[result] = True
        return result

    def _on_host(self, argument: Any) -> bool:
        """Whether a tensor, or every one of several that are joined, is on the host."""
        if isinstance(argument, list | tuple) and argument:
            return all(isinstance(each, Tensor) and self._on_host(each) for each in argument)
        return isinstance(argument, Tensor) and argument in self._waits.on_host

    def _look(
        self,
        name: str,
        args: tuple[Any, ...],
        given: dict[str, Any],
        *,
        from_host: bool,
        to_host: bool,
        there: bool,
    ) -> None:
        blocking = not given.get("non_blocking")
        if name in _READS:
            waits = not from_host
        elif name == "to":
            waits = blocking and (there if from_host else to_host)
        elif name == "copy_":
            waits = blocking and from_host != (args[1] in self._waits.on_host)
        elif name in _FROM_PYTHON:
            # A copy from memory that is not pinned waits as well.
            waits = there or name == "new_tensor"
        elif name in ("__getitem__", "__setitem__"):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            waits = not from_host and any(isinstance(part, list) for part in index)
        else:
            waits = False
        if waits:
            self._waits.add(name)


def _has_tensor(arguments: tuple[Any, ...]) -> bool:
    return any(
        isinstance(each, Tensor) or (isinstance(each, list | tuple) and _has_tensor(tuple(each)))
        for each in arguments
    )


def _really(argument: Any) -> Any:
    return HOST if isinstance(argument, torch.device) else argument


class DataDependence(TorchDispatchMode):
    """Finds operations whose result the host must know before it can go on, however deep."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._waits = waits

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if (
            _depends_on_data(func, args)
            and args[0] not in self._waits.on_host
            and self._waits.is_observing()
        ):
            self._waits.add(str(func))
        return func(*args, **(kwargs or {}))


def _depends_on_data(func: Any, args: tuple[Any, ...]) -> bool:
    name = func.overloadpacket.__name__
    if name.startswith(("index", "_index", "_unsafe_index")) and isinstance(args[1], list | tuple):
        masks = [
            each for each in args[1] if isinstance(each, Tensor) and not each.dtype.itemsize > 1
        ]
        # One value under a mask is written without counting where.
        return bool(masks) and not ("put" in name and args[2].numel() == 1)
    return any(tag in func.tags for tag in _BY_DATA) and name != "nonzero_static"


class SynchronisationIsAnError(TorchFunctionMode):
    """On CUDA itself: a wait inside a call of CoreVital's is an error of that call."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if not self._waits.is_observing():
            return func(*args, **(kwargs or {}))
        self._waits.calls += 1
        torch.cuda.set_sync_debug_mode("error")
        try:
            return func(*args, **(kwargs or {}))
        except RuntimeError as error:
            self._waits.add(f"{getattr(func, '__name__', func)}: {error}")
            raise
        finally:
            torch.cuda.set_sync_debug_mode("default")


@contextmanager
def _while_generating(waits: Waits) -> Iterator[None]:
    active = Observation.active

    @contextmanager
    def followed(self: Observation) -> Iterator[None]:
        try:
            with active(self):
                yield
        finally:
            waits.finishing = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Observation, "active", followed)
        yield


@contextmanager
def pretended_accelerator(package: str = "corevital.") -> Iterator[Waits]:
    """Find what would wait for an accelerator during the one generation inside the block."""
    waits = Waits(package)
    with _while_generating(waits), DataDependence(waits), PretendedAccelerator(waits):
        yield waits


@contextmanager
def held_to_no_synchronisation(package: str = "corevital.") -> Iterator[Waits]:
    """Find what waits for CUDA during the one generation inside the block."""
    waits = Waits(package)
    with _while_generating(waits), SynchronisationIsAnError(waits):
        yield waits
