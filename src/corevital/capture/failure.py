"""Tells a failure of CoreVital's own from an exception that only happened to strike here."""

from __future__ import annotations

from types import TracebackType
from typing import Final

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
_OWN_PACKAGES: Final = frozenset({"corevital", "numpy", "torch", "transformers", "wrapt"})


def is_own_failure(error: Exception) -> bool:
    """Whether ``error`` came from observing, so that the generation can go on without it.

    A signal handler (a time limit, say) or another thread can raise at any instruction, also one of
    CoreVital's. Such an exception is the user's: its type is none that observing raises, or it was
    raised in a frame of other code.
    """
    return isinstance(error, _EXPECTED) and _raised_in(error.__traceback__) in _OWN_PACKAGES


def _raised_in(traceback: TracebackType | None) -> str:
    package = ""
    while traceback is not None:
        package = str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        traceback = traceback.tb_next
    return package
