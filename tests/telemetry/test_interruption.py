"""Exceptions that strike anywhere, in CoreVital's own code too, reach the caller.

A signal handler (a time limit, say) or another thread can raise between any two instructions. Such
an exception is the application's: none may be taken for a failure of CoreVital and swallowed.
"""

from __future__ import annotations

import ast
import ctypes
import functools
import logging
import random
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import pytest
import torch
from opentelemetry import context, trace
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import TracerProvider

from corevital.capture.active import active_run
from tests.instrumentation import hooks_on
from tests.models import GenerativeModel
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import greedy

STRIKES = 60
PATIENCE = 5.0
TOKENS = 2
MOST_STRIKES = 800
NEVER = 0.0
LIBRARIES = Path(torch.__file__).parents[1]


class Strike(BaseException):
    """Where the last exception of these tests was raised, from the innermost frame outwards.

    One that another thread raises exists from where something first handles it.
    """

    frames: ClassVar[list[tuple[str, int]]] = []

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.raised_in(sys._getframe())

    @classmethod
    def raised_in(cls, frame: FrameType | None) -> None:
        Strike.frames = [(f.f_code.co_filename, line) for f, line in traceback.walk_stack(frame)]

    @classmethod
    def caught_by_a_library(cls) -> bool:
        """Whether it fell into a ``try`` of other code that goes on after such exceptions.

        ``transformers`` has a few: ``is_torchdynamo_exporting`` takes any as an answer.
        """
        names = frozenset(each.__name__ for each in cls.__mro__)
        libraries = (each for each in Strike.frames if Path(each[0]).is_relative_to(LIBRARIES))
        return any(line in swallowing(source, names) for source, line in libraries)


class Cancelled(Strike, Exception):
    """What another thread raises in the one that generates."""


class Deadline(Strike, RuntimeError):
    """The same; by its type it could be a failure of CoreVital."""


class TimeLimit(Strike, AssertionError):
    """So is this; a well-known package has such a one."""


class TimeIsUp(Strike, TimeoutError):
    """What a server raises after some seconds."""


class Interrupted(Strike, KeyboardInterrupt):
    """The user's wish to end it."""


@functools.cache
def swallowing(source: str, names: frozenset[str]) -> frozenset[int]:
    """The lines of a file in a ``try`` that handles exceptions of these types and goes on."""
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    return frozenset(
        line
        for block in ast.walk(tree)
        if isinstance(block, ast.Try) and any(swallows(each, names) for each in block.handlers)
        for line in range(block.body[0].lineno, (block.body[-1].end_lineno or 0) + 1)
    )


def swallows(handler: ast.ExceptHandler, names: frozenset[str]) -> bool:
    """Whether a handler takes one of these types, or names none, and does not raise."""
    caught = ast.walk(handler.type) if handler.type else map(ast.Name, names)
    takes = any(isinstance(each, ast.Name) and each.id in names for each in caught)
    return takes and not any(isinstance(each, ast.Raise) for each in ast.walk(handler))


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    """Coverage takes a lock in Python: an exception that strikes there leaves it held for good.

    Where tests run in several processes, pytest-cov's own ``no_cover`` ends only one of two traces.
    """
    here, in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    threading.settrace(None)
    yield
    threading.settrace(in_threads)
    sys.settrace(here)


@pytest.fixture
def generate(model: GenerativeModel, instrument: Instrument) -> Callable[[], Any]:
    """An instrumented generation without exporters: the SDK swallows what strikes in one."""
    instrument(
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        logger_provider=LoggerProvider(shutdown_on_exit=False),
    )

    def call() -> Any:
        return greedy(model, max_new_tokens=TOKENS, min_new_tokens=TOKENS)

    call()
    return call


@pytest.fixture
def out_of_reach(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], bool]:
    """Whether, since it was last asked, an exception ended where no one can pass it on.

    That is in a callback of the garbage collector, which Python ignores, and in OpenTelemetry's
    ``detach``, which catches every exception.
    """
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    caplog.set_level(logging.ERROR, "opentelemetry")

    def was() -> bool:
        found = bool(ignored) or "Failed to detach context" in caplog.text
        ignored.clear()
        caplog.clear()
        return found

    return was


@contextmanager
def context_of_its_own() -> Iterator[None]:
    """Whatever an interrupted generation leaves behind in the context ends here."""
    before = context.get_current()
    run = active_run.get()
    try:
        yield
    finally:
        context.attach(before)
        active_run.set(run)


def how_long(generate: Callable[[], Any]) -> float:
    started = time.perf_counter()
    for _ in range(3):
        generate()
    return (time.perf_counter() - started) / 3


class GeneratesUntilInterrupted(threading.Thread):
    """Generates again and again until an exception ends it."""

    def __init__(self, generate: Callable[[], Any]) -> None:
        super().__init__()
        self._generate = generate
        self._given_up = threading.Event()
        self.under_way = threading.Event()
        self.ended_by: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._given_up.is_set():
                self.under_way.set()
                self._generate()
        except BaseException as error:
            self.ended_by = error

    def interrupt(self, error: type[BaseException]) -> None:
        assert self.ident is not None
        thread, raised = ctypes.c_ulong(self.ident), ctypes.py_object(error)
        assert ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, raised) == 1

    def ends_within(self, seconds: float) -> bool:
        """Whether it ends by itself; it is stopped in either case."""
        self.join(seconds)
        ended = not self.is_alive()
        self._given_up.set()
        self.join()
        return ended


@pytest.mark.parametrize("error", [Cancelled, Deadline, TimeLimit, Interrupted])
def test_an_exception_thrown_into_the_generating_thread_ends_it(
    error: type[Strike],
    generate: Callable[[], Any],
    model: GenerativeModel,
    out_of_reach: Callable[[], bool],
) -> None:
    duration = how_long(generate)
    delays = random.Random(1)
    for _ in range(STRIKES):
        thread = GeneratesUntilInterrupted(generate)
        thread.start()
        thread.under_way.wait()
        time.sleep(delays.uniform(0, duration))
        thread.interrupt(error)

        ended = thread.ends_within(PATIENCE)
        assert ended or out_of_reach() or error.caught_by_a_library()
        assert isinstance(thread.ended_by, error | None)
    assert torch.equal(generate(), greedy(model, max_new_tokens=TOKENS, min_new_tokens=TOKENS))


@pytest.fixture
def alarm() -> Iterator[Callable[[float, Strike], None]]:
    """Raises an exception in this thread after some seconds, as time limits do."""
    errors: list[Strike] = []

    def strike(number: int, frame: FrameType | None) -> None:
        errors[-1].raised_in(frame)
        raise errors[-1]

    before = signal.signal(signal.SIGALRM, strike)

    def start(seconds: float, error: Strike) -> None:
        errors.append(error)
        signal.setitimer(signal.ITIMER_REAL, seconds)

    yield start
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [TimeIsUp, Deadline, TimeLimit])
def test_a_time_limit_ends_the_generation(
    error: type[Strike],
    generate: Callable[[], Any],
    alarm: Callable[[float, Strike], None],
    out_of_reach: Callable[[], bool],
) -> None:
    expected = generate()
    duration = how_long(generate)
    delays = random.Random(2)
    for _ in range(STRIKES):
        limit = error("time is up")
        ended_by: Strike | None = None
        with context_of_its_own():
            give_up = time.monotonic() + PATIENCE
            try:
                alarm(delays.uniform(1e-4, duration), limit)
                while time.monotonic() < give_up:
                    generate()
            except error as raised:
                ended_by = raised
        assert ended_by is limit or out_of_reach() or error.caught_by_a_library()
    assert torch.equal(generate(), expected)


@functools.cache
def with_headers(source: str) -> frozenset[int]:
    """The lines of a file on which a ``with`` begins, to which Python comes back at its end.

    It comes back by instructions between which no signal handler runs: the exit is certain.
    """
    tree = ast.parse(Path(source).read_text(encoding="utf-8"))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    return frozenset(line for block in blocks for line in range(block.lineno, block.body[0].lineno))


class Lines:
    """Counts the lines of CoreVital that a call runs, and sends a signal at one of them."""

    def __init__(self, strike_at: int | None = None) -> None:
        self.count = 0
        self.struck = ""
        self._strike_at = strike_at

    @contextmanager
    def watched(self) -> Iterator[None]:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            yield
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        source = Path(frame.f_code.co_filename)
        own = str(frame.f_globals.get("__name__")).startswith("corevital.") and source.is_file()
        return self._line if own else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        source = frame.f_code.co_filename
        if event == "line" and frame.f_lineno not in with_headers(source):
            if self.count == self._strike_at:
                self.struck = f"{source}:{frame.f_lineno}"
                signal.raise_signal(signal.SIGALRM)
            self.count += 1
        return self._line


def left_behind(model: GenerativeModel, hooks: int) -> list[str]:
    """What an interrupted generation did not take away with it."""
    traces = {
        "hooks": hooks_on(model) > hooks,
        "a run": active_run.get() is not None,
        "a span": trace.get_current_span() is not trace.INVALID_SPAN,
    }
    return [name for name, found in traces.items() if found]


def test_an_exception_at_any_line_reaches_the_caller_and_leaves_nothing_behind(
    generate: Callable[[], Any],
    model: GenerativeModel,
    alarm: Callable[[float, Strike], None],
) -> None:
    expected = generate()
    counting = Lines()
    with counting.watched():
        generate()
    assert counting.count > MOST_STRIKES

    swallowed: list[str] = []
    left: list[tuple[str, list[str]]] = []
    for at in range(0, counting.count, 1 + counting.count // MOST_STRIKES):
        alarm(NEVER, Deadline("time is up"))
        lines = Lines(at)
        hooks = hooks_on(model)
        with context_of_its_own():
            try:
                with lines.watched():
                    generate()
            except Deadline:
                if traces := left_behind(model, hooks):
                    left.append((lines.struck, traces))
            else:
                # A generation may run a line or two less than the one whose lines were counted.
                if lines.struck:
                    swallowed.append(lines.struck)

    assert swallowed == []
    assert left == []
    assert torch.equal(generate(), expected)
