"""Hands a finished record to the span processor that saw the generation's span start."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Final, Protocol

from opentelemetry.context import Context, create_key, get_value, set_value
from opentelemetry.trace import Span

from corevital.assess.assessment import Assessment
from corevital.record import GenerationRecord

_KEY: Final = create_key("corevital-handover")


@dataclass(frozen=True, slots=True)
class Delivery:
    """A record, with the texts of its tokens where content may be sent."""

    record: GenerationRecord
    token_texts: tuple[str, ...] | None = None


def without_texts(delivery: Delivery) -> Delivery:
    """The same record, for a signal on which content must not be sent."""
    return Delivery(delivery.record)


class RecordWriter(Protocol):
    """Writes a delivery to a span that is still recording."""

    def write(self, span: Span, delivery: Delivery) -> Assessment | None:
        """Assess the record and write the result."""
        ...


class Handover:
    """Travels in the context in which one span is started.

    The first span that starts in it is the generation's; the first processor that sees it start
    becomes the writer. Later processors and child spans, which inherit the context, change nothing.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._span: Span | None = None
        self._writer: RecordWriter | None = None

    def in_context(self, context: Context) -> Context:
        """``context`` with this handover in it."""
        return set_value(_KEY, self, context)

    def offer(self, span: Span, writer: RecordWriter) -> None:
        """Take ``writer`` for ``span``, unless another was first."""
        with self._lock:
            if self._span is None:
                self._span, self._writer = span, writer

    def writer_of(self, span: Span) -> RecordWriter | None:
        """The processor that saw ``span`` start; of another span that took its place, none."""
        same = self._span is not None and self._span.get_span_context() == span.get_span_context()
        return self._writer if same else None


def handover_in(context: Context | None) -> Handover | None:
    """The handover that travels in ``context`` (the current one when ``None``)."""
    value = get_value(_KEY, context)
    return value if isinstance(value, Handover) else None
