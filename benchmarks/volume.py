"""How much a generation sends by number: attributes, events, log records and series of metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricsData,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from benchmarks.markdown import table
from corevital import CoreVitalInstrumentor
from corevital.record import CaptureMode
from corevital.settings import StepEvents

TOKENS: Final = 24
_SUM_AND_COUNT: Final = 2


@dataclass(frozen=True, slots=True)
class Volume:
    """What one generation sends, and the series that Prometheus then has of the process."""

    capture: CaptureMode
    attributes: int
    events: int
    logs: int
    series: int


def volumes(generate: Callable[[int], object]) -> Iterator[Volume]:
    """One for each capture mode, with step events on the span and in the log."""
    for capture in CaptureMode:
        spans, logs = InMemorySpanExporter(), InMemoryLogRecordExporter()
        reader = InMemoryMetricReader()
        tracer = TracerProvider(shutdown_on_exit=False)
        tracer.add_span_processor(SimpleSpanProcessor(spans))
        logger = LoggerProvider(shutdown_on_exit=False)
        logger.add_log_record_processor(SimpleLogRecordProcessor(logs))
        meter = MeterProvider([reader], shutdown_on_exit=False)
        instrumentor = CoreVitalInstrumentor()
        instrumentor.instrument(
            tracer_provider=tracer,
            meter_provider=meter,
            logger_provider=logger,
            capture=capture,
            step_events=StepEvents.BOTH,
        )
        try:
            generate(TOKENS)
            (span,) = spans.get_finished_spans()
            yield Volume(
                capture,
                len(span.attributes or {}),
                len(span.events),
                len(logs.get_finished_logs()),
                series(reader.get_metrics_data()),
            )
        finally:
            instrumentor.uninstrument()
            for provider in (tracer, meter, logger):
                provider.shutdown()


def series(data: MetricsData | None) -> int:
    """Series that Prometheus makes of ``data``: of a histogram, its buckets, sum and count."""
    points = [
        point
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.data.data_points
    ]
    return sum(
        len(point.bucket_counts) + _SUM_AND_COUNT if isinstance(point, HistogramDataPoint) else 1
        for point in points
    )


def counts(found: Sequence[Volume]) -> str:
    """The table of them."""
    header = ("Capture", "Span attributes", "Span events", "Log records", "Prometheus series")
    body = [
        [
            f"`{each.capture}`",
            *map(str, (each.attributes, each.events, each.logs, each.series)),
        ]
        for each in found
    ]
    return table(header, body)
