"""What becomes of each signal of a run, and the time that observing takes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Final

import torch

from corevital.capture.failure import is_own_failure
from corevital.capture.unobservable import Unobservable

_logger: Final = logging.getLogger(__name__)
_already_logged: Final[set[tuple[str, type[Exception]]]] = set()

_AS_IT_IS: Final = nullcontext()


class ObservedSignals:
    """The signals of one run, each observed on its own.

    When observing one fails, the failure is logged once per process and counted, that signal ends
    for this run, and the generation goes on untouched.

    Attributes:
        unavailable: why a signal (``logits``, ``hidden``, ``attention``, ``prompt``, in an
            encoder-decoder ``cross_attention`` and those of the encoder, and ``intervention``)
            ended or was never begun.
        failed: the signals whose observation failed.
        seconds: time spent observing.
    """

    def __init__(self) -> None:
        self.unavailable: dict[str, str] = {}
        self.failed: list[str] = []
        self.seconds = 0.0

    def observe(self, signal: str, observe: Callable[..., None], *args: Any) -> None:
        """Call ``observe``, unless the signal has ended; its failure never ends the generation."""
        if signal in self.unavailable:
            return
        started, before = time.perf_counter(), self.seconds
        try:
            # A loop may compute gradients; what is observed has no part in them.
            with torch.no_grad() if torch.is_grad_enabled() else _AS_IT_IS:
                observe(*args)
        except Exception as error:
            self.fail(signal, error)
        # What was observed inside is part of it.
        self.seconds = before + time.perf_counter() - started

    def end(self, reason: str, *signals: str) -> None:
        """Observe no more of these, for this reason."""
        self.unavailable |= dict.fromkeys(signals, reason)

    def fail(self, signal: str, error: Exception) -> None:
        """End a signal because observing it failed; raise what was not CoreVital's failure."""
        if isinstance(error, Unobservable):
            self.end(str(error), signal)
            return
        if not is_own_failure(error):
            raise error
        self.failed.append(signal)
        self.end(f"{type(error).__name__}: {error}"[:200], signal)
        if (signal, type(error)) not in _already_logged:
            _already_logged.add((signal, type(error)))
            _logger.warning("Observing %s failed; the generation goes on.", signal, exc_info=error)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Count the time inside as spent observing, once: what is observed there is part of it."""
        started, before = time.perf_counter(), self.seconds
        try:
            yield
        finally:
            self.seconds = before + time.perf_counter() - started
