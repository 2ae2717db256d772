"""The OTLP receiver of the tests gives back what the SDK's own exporters send."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_traces
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_traces
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor, LogRecordExporter
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    MetricExporter,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import (
    Link,
    SpanKind,
    Status,
    StatusCode,
    format_span_id,
    format_trace_id,
    set_span_in_context,
)

from tests.otlp_receiver import OtlpReceiver, grpc_receiver, http_receiver

RESOURCE = Resource({"service.name": "receiver-test"})
DELTA: dict[type, AggregationTemporality] = {
    Counter: AggregationTemporality.DELTA,
    Histogram: AggregationTemporality.DELTA,
}


class Exporters(NamedTuple):
    spans: SpanExporter
    metrics: MetricExporter
    delta_metrics: MetricExporter
    logs: LogRecordExporter


def grpc_exporters(endpoint: str) -> Exporters:
    return Exporters(
        grpc_traces.OTLPSpanExporter(endpoint=endpoint, insecure=True),
        grpc_metrics.OTLPMetricExporter(endpoint=endpoint, insecure=True),
        grpc_metrics.OTLPMetricExporter(
            endpoint=endpoint, insecure=True, preferred_temporality=DELTA
        ),
        grpc_logs.OTLPLogExporter(endpoint=endpoint, insecure=True),
    )


def http_exporters(endpoint: str, compression: Compression) -> Exporters:
    return Exporters(
        http_traces.OTLPSpanExporter(f"{endpoint}/v1/traces", compression=compression),
        http_metrics.OTLPMetricExporter(f"{endpoint}/v1/metrics", compression=compression),
        http_metrics.OTLPMetricExporter(
            f"{endpoint}/v1/metrics", compression=compression, preferred_temporality=DELTA
        ),
        http_logs.OTLPLogExporter(f"{endpoint}/v1/logs", compression=compression),
    )


class Pipeline(NamedTuple):
    receiver: OtlpReceiver
    tracer_provider: TracerProvider
    meter_provider: MeterProvider
    delta_meter_provider: MeterProvider
    logger_provider: LoggerProvider


def meter_provider_to(exporter: MetricExporter) -> MeterProvider:
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)
    return MeterProvider([reader], resource=RESOURCE, shutdown_on_exit=False)


@pytest.fixture(params=["grpc", "http", "http-gzip"])
def pipeline(request: pytest.FixtureRequest) -> Iterator[Pipeline]:
    """Batching pipelines of every signal into a receiver, over each protocol."""
    with ExitStack() as stack:
        if request.param == "grpc":
            receiver = stack.enter_context(grpc_receiver())
            exporters = grpc_exporters(receiver.endpoint)
        else:
            receiver = stack.enter_context(http_receiver())
            gzip = request.param == "http-gzip"
            compression = Compression.Gzip if gzip else Compression.NoCompression
            exporters = http_exporters(receiver.endpoint, compression)
        tracer_provider = TracerProvider(resource=RESOURCE, shutdown_on_exit=False)
        stack.callback(tracer_provider.shutdown)
        tracer_provider.add_span_processor(BatchSpanProcessor(exporters.spans))
        meter_provider = meter_provider_to(exporters.metrics)
        stack.callback(meter_provider.shutdown)
        delta_meter_provider = meter_provider_to(exporters.delta_metrics)
        stack.callback(delta_meter_provider.shutdown)
        logger_provider = LoggerProvider(resource=RESOURCE, shutdown_on_exit=False)
        stack.callback(logger_provider.shutdown)
        logger_provider.add_log_record_processor(BatchLogRecordProcessor(exporters.logs))
        yield Pipeline(
            receiver, tracer_provider, meter_provider, delta_meter_provider, logger_provider
        )


def test_spans(pipeline: Pipeline) -> None:
    tracer = pipeline.tracer_provider.get_tracer("scope", "1.2")
    parent = tracer.start_span("parent", kind=SpanKind.CLIENT, start_time=1_000)
    child = tracer.start_span(
        "child",
        context=set_span_in_context(parent),
        links=[Link(parent.get_span_context(), {"why": "test"})],
        attributes={"text": "a", "whole": 7, "real": 0.5, "yes": True, "many": [1.5, 2.5]},
        start_time=2_000,
    )
    child.add_event("step", {"index": 3, "names": ["x", "y"]}, timestamp=2_500)
    child.set_status(Status(StatusCode.ERROR, "broken"))
    child.end(3_000)
    parent.end(4_000)
    pipeline.tracer_provider.force_flush()

    received = {span.name: span for span in pipeline.receiver.spans()}
    assert received.keys() == {"parent", "child"}
    context = parent.get_span_context()
    first, second = received["parent"], received["child"]
    assert first.trace_id == second.trace_id == format_trace_id(context.trace_id)
    assert first.parent_span_id is None
    assert second.parent_span_id == first.span_id == format_span_id(context.span_id)
    assert (first.kind, second.kind) == (SpanKind.CLIENT, SpanKind.INTERNAL)
    assert (second.start_ns, second.end_ns) == (2_000, 3_000)
    assert second.attributes == {
        "text": "a",
        "whole": 7,
        "real": 0.5,
        "yes": True,
        "many": [1.5, 2.5],
    }
    assert second.events == [("step", 2_500, {"index": 3, "names": ["x", "y"]})]
    assert second.links == [(first.trace_id, first.span_id, {"why": "test"})]
    assert second.status == (StatusCode.ERROR, "broken")
    assert first.status == (StatusCode.UNSET, "")
    assert first.resource == {"service.name": "receiver-test"}
    assert (first.scope, first.scope_version) == ("scope", "1.2")
    assert (first.dropped_attributes, first.dropped_events) == (0, 0)


def test_metrics_with_exemplars(pipeline: Pipeline) -> None:
    meter = pipeline.meter_provider.get_meter("scope")
    counter = meter.create_counter("count", unit="{thing}", description="Things.")
    histogram = meter.create_histogram("size", "By", explicit_bucket_boundaries_advisory=[1, 10])
    gauge = meter.create_gauge("level")
    tracer = pipeline.tracer_provider.get_tracer("scope")
    with tracer.start_as_current_span("exemplary") as span:
        histogram.record(5, {"model": "m"})
        histogram.record(50, {"model": "m"})
    counter.add(2, {"model": "m"})
    counter.add(3, {"model": "n"})
    gauge.set(0.25)
    pipeline.meter_provider.force_flush()
    counter.add(4, {"model": "m"})
    gauge.set(0.75)
    pipeline.meter_provider.force_flush()

    metrics = pipeline.receiver.metrics()
    assert metrics.keys() == {"count", "size", "level"}
    count = metrics["count"]
    assert (count.unit, count.description, count.kind) == ("{thing}", "Things.", "sum")
    assert count.scope == "scope"
    assert {point.attributes["model"]: point.value for point in count.points} == {"m": 6, "n": 3}
    assert [point.value for point in metrics["level"].points] == [0.75]

    size = metrics["size"]
    assert (size.unit, size.kind) == ("By", "histogram")
    (point,) = size.points
    assert point.attributes == {"model": "m"}
    assert point.resource == {"service.name": "receiver-test"}
    assert (point.count, point.sum, point.min, point.max) == (2, 55, 5, 50)
    assert (point.bounds, point.bucket_counts) == ([1, 10], [0, 1, 1])
    context = span.get_span_context()
    assert {(exemplar.value, exemplar.trace_id) for exemplar in point.exemplars} == {
        (5, format_trace_id(context.trace_id)),
        (50, format_trace_id(context.trace_id)),
    }
    assert {exemplar.span_id for exemplar in point.exemplars} == {format_span_id(context.span_id)}


def test_delta_metrics_keep_every_point(pipeline: Pipeline) -> None:
    counter = pipeline.delta_meter_provider.get_meter("scope").create_counter("count")
    for amount in (2, 3):
        counter.add(amount)
        pipeline.delta_meter_provider.force_flush()

    assert [point.value for point in pipeline.receiver.metrics()["count"].points] == [2, 3]


def test_logs(pipeline: Pipeline) -> None:
    logger = pipeline.logger_provider.get_logger("scope")
    tracer = pipeline.tracer_provider.get_tracer("scope")
    with tracer.start_as_current_span("current") as span:
        logger.emit(
            LogRecord(
                timestamp=1_000,
                severity_number=SeverityNumber.WARN,
                severity_text="WARN",
                event_name="thing.happened",
                body={"what": ["a", 1, None]},
                attributes={"index": 3},
            )
        )
    logger.emit(LogRecord(timestamp=2_000, body="plain"))
    pipeline.logger_provider.force_flush()

    event, plain = pipeline.receiver.logs()
    context = span.get_span_context()
    assert event.event_name == "thing.happened"
    assert event.body == {"what": ["a", 1, None]}
    assert event.attributes == {"index": 3}
    assert event.trace_id == format_trace_id(context.trace_id)
    assert event.span_id == format_span_id(context.span_id)
    assert event.time_ns == 1_000
    assert (event.severity_number, event.severity_text) == (13, "WARN")
    assert event.resource == {"service.name": "receiver-test"}
    assert event.scope == "scope"
    assert (plain.event_name, plain.body, plain.trace_id) == ("", "plain", None)


def test_waiting_for_data(pipeline: Pipeline) -> None:
    pipeline.tracer_provider.get_tracer("scope").start_span("late").end()
    with pytest.raises(TimeoutError, match=r"received spans \[\]"):
        pipeline.receiver.wait_for(lambda receiver: receiver.spans(), timeout=0.01)

    pipeline.tracer_provider.force_flush()
    pipeline.receiver.wait_for(lambda receiver: receiver.spans())
    pipeline.receiver.clear()
    assert pipeline.receiver.spans() == []


def test_a_receiver_can_come_back_on_its_port(otlp_grpc: OtlpReceiver) -> None:
    with grpc_receiver() as before:
        port = urlsplit(before.endpoint).port
    assert port is not None
    with grpc_receiver(port) as after:
        assert after.endpoint == before.endpoint
        assert after.endpoint != otlp_grpc.endpoint


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("/v1/other", {"Content-Type": "application/x-protobuf"}, b"", 404),
        ("/v1/traces", {"Content-Type": "application/json"}, b"{}", 415),
        ("/v1/traces", {"Content-Type": "application/x-protobuf"}, b"\xff", 400),
        (
            "/v1/traces",
            {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"},
            b"not gzip",
            400,
        ),
        ("/v1/traces", {"Content-Type": "application/x-protobuf"}, b"", 200),
    ],
)
def test_http_answers_as_the_protocol_asks(
    otlp_http: OtlpReceiver, path: str, headers: dict[str, str], body: bytes, status: int
) -> None:
    connection = http.client.HTTPConnection(urlsplit(otlp_http.endpoint).netloc)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    response.read()
    connection.close()

    assert response.status == status
