"""Keeps what fails around a generation away from it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from corevital.capture.failure import is_own_failure
from corevital.telemetry.metrics import GenerationMetrics

_logger: Final = logging.getLogger(__name__)
T = TypeVar("T")


class Guard:
    """Calls what may fail; a failure is logged once for each kind, and counted every time."""

    def __init__(self, metrics: GenerationMetrics) -> None:
        self._metrics = metrics
        self._logged: set[str] = set()

    def __call__(self, what: str, act: Callable[..., T], *args: Any) -> T | None:
        """The result of ``act``, or ``None`` if it failed; ``what`` names it for the log.

        Raises:
            BaseException: what is the application's own, such as a time limit that struck here.
        """
        try:
            return act(*args)
        except Exception as error:
            if not is_own_failure(error):
                raise
            self._metrics.record_failure(what, {}, None)
            if what not in self._logged:
                self._logged.add(what)
                _logger.warning("A generation goes on without its %s.", what, exc_info=True)
            return None
