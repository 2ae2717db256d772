"""An application that CoreVital instruments and that sends everything to a Collector."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from corevital import CoreVitalInstrumentor


@dataclass(frozen=True, slots=True)
class Application:
    """The providers of an application, and the spans that they ended."""

    service: str
    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    logger_provider: LoggerProvider
    _spans: InMemorySpanExporter

    def spans(self) -> list[ReadableSpan]:
        """Return every span that has ended, whether or not it could be sent."""
        return list(self._spans.get_finished_spans())

    def flush(self) -> None:
        """Send what there is, and wait until it was taken."""
        assert self.tracer_provider.force_flush()
        assert self.meter_provider.force_flush()
        assert self.logger_provider.force_flush()


@contextmanager
def application(
    endpoint: str,
    service: str,
    *,
    resource: dict[str, str] | None = None,
    delay_ms: int = 200,
    timeout_s: int = 10,
    **settings: Any,
) -> Iterator[Application]:
    """CoreVital instruments inside the block, with ``settings``.

    ``endpoint`` takes OTLP over gRPC; spans and logs are sent every ``delay_ms`` milliseconds. An
    export that does not succeed within ``timeout_s`` seconds is given up.
    """
    described = Resource({"service.name": service, **(resource or {})})
    target: dict[str, Any] = {"endpoint": endpoint, "insecure": True, "timeout": timeout_s}
    kept = InMemorySpanExporter()
    tracer_provider = TracerProvider(resource=described, shutdown_on_exit=False)
    tracer_provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer_provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(**target), schedule_delay_millis=delay_ms)
    )
    meter_provider = MeterProvider(
        [
            PeriodicExportingMetricReader(
                OTLPMetricExporter(**target), export_interval_millis=60_000
            )
        ],
        resource=described,
        shutdown_on_exit=False,
    )
    logger_provider = LoggerProvider(resource=described, shutdown_on_exit=False)
    logger_provider.add_log_record_processor(
        BatchLogRecordProcessor(OTLPLogExporter(**target), schedule_delay_millis=delay_ms)
    )
    instrumentor = CoreVitalInstrumentor()
    instrumentor.instrument(
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        logger_provider=logger_provider,
        **settings,
    )
    try:
        yield Application(service, tracer_provider, meter_provider, logger_provider, kept)
    finally:
        instrumentor.uninstrument()
        tracer_provider.shutdown()
        meter_provider.shutdown()
        logger_provider.shutdown()
