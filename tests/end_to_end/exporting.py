"""Providers that send everything to a real OTLP receiver, as an application sets them up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from corevital import CoreVitalInstrumentor
from tests.otlp_receiver import OtlpReceiver, grpc_receiver, http_receiver

SERVICE = "wire-test"


@dataclass(frozen=True, slots=True)
class Exporting:
    """Batching pipelines of every signal, and what received them."""

    receiver: OtlpReceiver
    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    logger_provider: LoggerProvider

    def flush(self) -> None:
        """Send what there is."""
        assert self.tracer_provider.force_flush()
        assert self.meter_provider.force_flush()
        assert self.logger_provider.force_flush()


@contextmanager
def exporting(protocol: str, **settings: Any) -> Iterator[Exporting]:
    """CoreVital instruments inside the block; ``protocol`` is ``grpc`` or ``http``."""
    receiving = grpc_receiver() if protocol == "grpc" else http_receiver()
    with receiving as receiver:
        resource = Resource({"service.name": SERVICE})
        spans, metrics, logs = _exporters(protocol, receiver.endpoint)
        pipelines = Exporting(
            receiver,
            TracerProvider(resource=resource, shutdown_on_exit=False),
            MeterProvider(
                [PeriodicExportingMetricReader(metrics, export_interval_millis=60_000)],
                resource=resource,
                shutdown_on_exit=False,
            ),
            LoggerProvider(resource=resource, shutdown_on_exit=False),
        )
        pipelines.tracer_provider.add_span_processor(BatchSpanProcessor(spans))
        pipelines.logger_provider.add_log_record_processor(BatchLogRecordProcessor(logs))
        instrumentor = CoreVitalInstrumentor()
        instrumentor.instrument(
            tracer_provider=pipelines.tracer_provider,
            meter_provider=pipelines.meter_provider,
            logger_provider=pipelines.logger_provider,
            **settings,
        )
        try:
            yield pipelines
        finally:
            instrumentor.uninstrument()
            pipelines.tracer_provider.shutdown()
            pipelines.meter_provider.shutdown()
            pipelines.logger_provider.shutdown()


def _exporters(protocol: str, endpoint: str) -> tuple[Any, Any, Any]:
    if protocol == "grpc":
        return (
            grpc_traces.OTLPSpanExporter(endpoint=endpoint, insecure=True),
            grpc_metrics.OTLPMetricExporter(endpoint=endpoint, insecure=True),
            grpc_logs.OTLPLogExporter(endpoint=endpoint, insecure=True),
        )
    return (
        http_traces.OTLPSpanExporter(f"{endpoint}/v1/traces"),
        http_metrics.OTLPMetricExporter(f"{endpoint}/v1/metrics"),
        http_logs.OTLPLogExporter(f"{endpoint}/v1/logs"),
    )
