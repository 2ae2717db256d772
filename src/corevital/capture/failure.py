"""Tells a failure around a generation from an exception that only happened to strike there."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import Any, Final

_EXPECTED: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    LookupError,
    MemoryError,
    NameError,
    RuntimeError,
    TypeError,
    ValueError,
)
_OWN: Final = sys.stdlib_module_names | {
    "corevital",
    "numpy",
    "opentelemetry",
    "pydantic",
    "torch",
    "transformers",
    "wrapt",
}
# What collections.namedtuple says of the constructors that it makes.
_NAMED_TUPLE: Final = "namedtuple_"


def is_own_failure(error: Exception) -> bool:
    """Whether ``error`` is a failure around the generation, which can go on without it.

    A signal handler (a time limit, say) or another thread can raise at any instruction, also one of
    CoreVital's. Such an exception is the user's and must reach the user. It is told by the
    handler's frame in its traceback; or, where only CoreVital's code and what that builds on was
    running, by a type that this code does not raise. Where code of the application's own was
    running, a listener or a span processor, the failure is that code's.
    """
    frames = list(_frames(error))
    handlers = set(_signal_handlers())
    if any(frame.f_code in handlers for frame in frames):
        return False
    if not all(_is_own(frame.f_globals.get("__name__")) for frame in frames):
        return True
    return isinstance(error, _EXPECTED) and _is_own(type(error).__module__)


def _frames(error: Exception) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


def _is_own(module: Any) -> bool:
    package = str(module).partition(".")[0]
    return package in _OWN or package.startswith(_NAMED_TUPLE)


def _signal_handlers() -> Iterator[CodeType]:
    for number in signal.valid_signals():
        handler: Any = signal.getsignal(number)
        while hasattr(handler, "func"):
            handler = handler.func
        handler = getattr(handler, "__func__", handler)
        code = getattr(handler, "__code__", None)
        if isinstance(code, CodeType):
            yield code
