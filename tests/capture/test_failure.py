"""Failures around a generation, and exceptions that only happened to strike there."""

from __future__ import annotations

import ctypes
import operator
import signal
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any, NamedTuple

import pytest

from corevital.capture.failure import is_own_failure


def raised_in(package: str, error: Exception, call: Any = None) -> Exception:
    """``error``, raised by code of ``package``, or by what that code calls."""
    names: dict[str, Any] = {"__name__": f"{package}.module", "error": error, "call": call}
    exec("def act():\n    call() if call else None\n    raise error", names)
    with pytest.raises(type(error) if call is None else Exception) as caught:
        names["act"]()
    traceback = caught.value.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals["__name__"] == __name__:
        traceback = traceback.tb_next
    return caught.value.with_traceback(traceback)


class Deadline(RuntimeError):
    """An application's own exception; by its base it could be anybody's."""


@pytest.mark.parametrize("package", ["corevital", "torch", "opentelemetry", "json"])
@pytest.mark.parametrize("error", [RuntimeError("shape"), TypeError("None"), KeyError("x")])
def test_what_such_code_raises_is_its_failure(package: str, error: Exception) -> None:
    assert is_own_failure(raised_in(package, error))


@pytest.mark.parametrize("error", [TimeoutError(), OSError(), Deadline(), StopIteration()])
def test_what_such_code_never_raises_came_from_outside(error: Exception) -> None:
    assert not is_own_failure(raised_in("corevital", error))


class Pair(NamedTuple):
    """Its constructor is made by the standard library, and of no module."""

    one: int
    other: int


def test_what_strikes_where_a_named_tuple_is_made_came_from_outside() -> None:
    strike = partial(
        ctypes.pythonapi.PyThreadState_SetAsyncExc,
        ctypes.c_ulong(threading.get_ident()),
        ctypes.py_object(Deadline),
    )
    # Nothing in between is Python, so that it strikes in the constructor.
    calls: list[Callable[[], object]] = [strike, partial(Pair, 1, 2)]
    caught = raised_in("corevital", AssertionError(), partial(list, map(operator.call, calls)))
    assert isinstance(caught, Deadline)
    assert not is_own_failure(caught)


@pytest.mark.parametrize("error", [ValueError("bad"), ConnectionError("gone"), Deadline()])
def test_what_a_part_of_the_application_raises_is_that_parts_failure(error: Exception) -> None:
    def listener() -> None:
        raise error

    assert is_own_failure(raised_in("corevital", AssertionError(), listener))


@pytest.mark.parametrize("error", [TimeoutError(), ValueError("time is up")])
def test_what_a_signal_handler_raises_is_the_applications(error: Exception) -> None:
    def strike(number: int, frame: FrameType | None) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, strike)
    try:
        caught = raised_in(
            "corevital", AssertionError(), lambda: signal.raise_signal(signal.SIGUSR1)
        )
        assert caught is error
        assert not is_own_failure(caught)
    finally:
        signal.signal(signal.SIGUSR1, before)
