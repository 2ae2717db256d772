"""A span whose last attributes are written after what it describes is over."""

from __future__ import annotations

from collections.abc import Callable

import wrapt
from opentelemetry.trace import Span


class SpanThatEnds(wrapt.ObjectProxy[Span]):
    """A span that ends when ``generate`` did, after what was observed has been written to it.

    What is written once the generation is over takes time that is not the generation's.
    """

    def __init__(self, span: Span, end_time_ns: int, write: Callable[[], None]) -> None:
        super().__init__(span)
        self._self_end_time_ns = end_time_ns
        self._self_write = write

    def end(self, end_time: int | None = None) -> None:
        """End the span, by default when the generation ended."""
        try:
            self._self_write()
        finally:
            self.__wrapped__.end(self._self_end_time_ns if end_time is None else end_time)
