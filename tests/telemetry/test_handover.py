"""The handover goes with a context to the one span that is started in it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from opentelemetry.context import Context, set_value
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext

from corevital.assess.assessment import Assessment
from corevital.telemetry.handover import Delivery, Handover, handover_in

SPAN = NonRecordingSpan(SpanContext(1, 2, is_remote=False))
OTHER_SPAN = NonRecordingSpan(SpanContext(1, 3, is_remote=False))


class Writer:
    """Writes nothing."""

    def write(self, span: Span, delivery: Delivery) -> Assessment | None:
        return None


def test_travels_in_a_context_and_in_those_made_of_it() -> None:
    handover = Handover()
    context = handover.in_context(Context())

    assert handover_in(context) is handover
    assert handover_in(set_value("key", 1, context)) is handover
    assert handover_in(Context()) is None


def test_of_two_the_inner_one_counts() -> None:
    outer, inner = Handover(), Handover()

    assert handover_in(inner.in_context(outer.in_context(Context()))) is inner


def test_the_first_processor_that_sees_the_span_writes() -> None:
    handover, first, second = Handover(), Writer(), Writer()
    assert handover.writer_of(SPAN) is None
    handover.offer(SPAN, first)
    handover.offer(SPAN, second)

    assert handover.writer_of(SPAN) is first


def test_a_processor_that_saw_another_span_writes_nothing() -> None:
    handover, first, second = Handover(), Writer(), Writer()
    handover.offer(OTHER_SPAN, first)
    handover.offer(SPAN, second)

    assert handover.writer_of(SPAN) is None


def test_of_processors_that_see_it_at_once_one_writes() -> None:
    writers = [Writer() for _ in range(50)]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            handover = Handover()
            list(pool.map(lambda writer, to=handover: to.offer(SPAN, writer), writers))
            assert sum(handover.writer_of(SPAN) is writer for writer in writers) == 1
