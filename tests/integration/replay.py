"""Sends one real span many times, each time as another: load without the model's time."""

from __future__ import annotations

from collections.abc import Iterator

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanContext, TraceFlags


def copies(span: ReadableSpan, count: int) -> Iterator[ReadableSpan]:
    """Spans that are equal to ``span`` but for their identifiers, which count from 1."""
    for number in range(1, count + 1):
        yield ReadableSpan(
            name=span.name,
            context=SpanContext(number, number, False, TraceFlags(TraceFlags.SAMPLED)),
            resource=span.resource,
            attributes=span.attributes,
            events=span.events,
            links=span.links,
            kind=span.kind,
            status=span.status,
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )


def send(spans: Iterator[ReadableSpan], endpoint: str, count: int) -> None:
    """Send ``count`` spans over gRPC as an application does, and wait until they were taken."""
    processor = BatchSpanProcessor(
        OTLPSpanExporter(endpoint=endpoint, insecure=True, timeout=60), max_queue_size=count
    )
    for span in spans:
        processor.on_end(span)
    assert processor.force_flush(120_000)
    processor.shutdown()
