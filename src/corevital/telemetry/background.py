"""Work that is done in a thread of its own, so that it holds up no other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

_logger: Final = logging.getLogger(__name__)


class Background:
    """Calls functions one after the other, in a thread that ends when it is told to.

    The interpreter waits for the thread, so that nothing is lost at its end.
    """

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="corevital")
        self._thread.start()

    def submit(self, work: Callable[[], object]) -> bool:
        """Do ``work`` after all that was submitted before; ``False`` once it is closed."""
        with self._lock:
            if not self._closed:
                self._queue.put(work)
            return not self._closed

    def close(self) -> None:
        """Take no more work, and end when all is done."""
        with self._lock:
            self._closed = True
            self._queue.put(None)

    def join(self, timeout: float) -> None:
        """Wait until it has ended, at most ``timeout`` seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception:
                # There is nobody here to whom it could be raised.
                _logger.exception("A request was not told of.")
