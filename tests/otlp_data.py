"""Received OTLP data as small dataclasses, decoded from the protobuf messages.

Trace and span identifiers are lower-case hexadecimal strings, times nanoseconds since the epoch,
kinds and status codes the OpenTelemetry API's own enumerations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.trace import SpanKind, StatusCode

Attributes = dict[str, Any]


class Event(NamedTuple):
    name: str
    time_ns: int
    attributes: Attributes


class Link(NamedTuple):
    trace_id: str
    span_id: str
    attributes: Attributes


class Status(NamedTuple):
    code: StatusCode
    description: str


@dataclass(frozen=True, slots=True)
class ReceivedSpan:
    name: str
    trace_id: str
    span_id: str
    parent_span_id: str | None
    kind: SpanKind
    start_ns: int
    end_ns: int
    attributes: Attributes
    events: list[Event]
    links: list[Link]
    status: Status
    dropped_attributes: int
    dropped_events: int
    resource: Attributes
    scope: str
    scope_version: str


@dataclass(frozen=True, slots=True)
class Exemplar:
    value: float
    time_ns: int
    trace_id: str | None
    span_id: str | None
    attributes: Attributes


@dataclass(frozen=True, slots=True)
class Point:
    """One data point; ``value`` is set for sums and gauges, the fields after it for histograms."""

    attributes: Attributes
    start_ns: int
    time_ns: int
    resource: Attributes
    exemplars: list[Exemplar]
    value: float | None = None
    count: int = 0
    sum: float = 0.0
    min: float | None = None
    max: float | None = None
    bounds: list[float] = field(default_factory=list)
    bucket_counts: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric; of a cumulative series or a gauge only the newest point is kept.

    An export brings only the exemplars since the one before: the newest point has those of all.
    """

    name: str
    unit: str
    description: str
    kind: str
    scope: str
    points: list[Point]


@dataclass(frozen=True, slots=True)
class ReceivedLog:
    event_name: str
    body: Any
    attributes: Attributes
    trace_id: str | None
    span_id: str | None
    time_ns: int
    severity_number: int
    severity_text: str
    resource: Attributes
    scope: str


def decode_spans(requests: Iterable[ExportTraceServiceRequest]) -> list[ReceivedSpan]:
    return [
        ReceivedSpan(
            name=span.name,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_span_id=span.parent_span_id.hex() or None,
            # The protocol counts from 1, the API from 0.
            kind=SpanKind(span.kind - 1),
            start_ns=span.start_time_unix_nano,
            end_ns=span.end_time_unix_nano,
            attributes=_attributes(span.attributes),
            events=[
                Event(event.name, event.time_unix_nano, _attributes(event.attributes))
                for event in span.events
            ],
            links=[
                Link(link.trace_id.hex(), link.span_id.hex(), _attributes(link.attributes))
                for link in span.links
            ],
            status=Status(StatusCode(span.status.code), span.status.message),
            dropped_attributes=span.dropped_attributes_count,
            dropped_events=span.dropped_events_count,
            resource=_attributes(group.resource.attributes),
            scope=scoped.scope.name,
            scope_version=scoped.scope.version,
        )
        for request in requests
        for group in request.resource_spans
        for scoped in group.scope_spans
        for span in scoped.spans
    ]


def decode_logs(requests: Iterable[ExportLogsServiceRequest]) -> list[ReceivedLog]:
    return [
        ReceivedLog(
            event_name=log.event_name,
            body=_value(log.body),
            attributes=_attributes(log.attributes),
            trace_id=log.trace_id.hex() or None,
            span_id=log.span_id.hex() or None,
            time_ns=log.time_unix_nano,
            severity_number=log.severity_number,
            severity_text=log.severity_text,
            resource=_attributes(group.resource.attributes),
            scope=scoped.scope.name,
        )
        for request in requests
        for group in request.resource_logs
        for scoped in group.scope_logs
        for log in scoped.log_records
    ]


def decode_metrics(requests: Iterable[ExportMetricsServiceRequest]) -> dict[str, Metric]:
    metrics: dict[str, Metric] = {}
    series: dict[tuple[str, str], int] = {}
    for metric, resource, scope in _received_metrics(requests):
        kind = metric.WhichOneof("data")
        assert kind is not None, f"metric {metric.name} without data"
        known = metrics.setdefault(
            metric.name, Metric(metric.name, metric.unit, metric.description, kind, scope, [])
        )
        for point in _points(metric, resource):
            key = (metric.name, repr((resource, sorted(point.attributes.items()))))
            if key in series and not _is_delta(metric):
                earlier = known.points[series[key]].exemplars
                known.points[series[key]] = replace(point, exemplars=earlier + point.exemplars)
            else:
                series[key] = len(known.points)
                known.points.append(point)
    return metrics


def _received_metrics(
    requests: Iterable[ExportMetricsServiceRequest],
) -> Iterator[tuple[metrics_pb2.Metric, Attributes, str]]:
    for request in requests:
        for group in request.resource_metrics:
            resource = _attributes(group.resource.attributes)
            for scoped in group.scope_metrics:
                for metric in scoped.metrics:
                    yield metric, resource, scoped.scope.name


def _points(metric: metrics_pb2.Metric, resource: Attributes) -> list[Point]:
    match metric.WhichOneof("data"):
        case "sum":
            return [_number(point, resource) for point in metric.sum.data_points]
        case "gauge":
            return [_number(point, resource) for point in metric.gauge.data_points]
        case "histogram":
            return [_histogram(point, resource) for point in metric.histogram.data_points]
        case kind:
            raise ValueError(f"metric {metric.name} is a {kind}, which is not decoded here")


def _number(point: metrics_pb2.NumberDataPoint, resource: Attributes) -> Point:
    return Point(
        attributes=_attributes(point.attributes),
        start_ns=point.start_time_unix_nano,
        time_ns=point.time_unix_nano,
        resource=resource,
        exemplars=_exemplars(point.exemplars),
        value=_number_value(point),
    )


def _histogram(point: metrics_pb2.HistogramDataPoint, resource: Attributes) -> Point:
    return Point(
        attributes=_attributes(point.attributes),
        start_ns=point.start_time_unix_nano,
        time_ns=point.time_unix_nano,
        resource=resource,
        exemplars=_exemplars(point.exemplars),
        count=point.count,
        sum=point.sum,
        min=point.min if point.HasField("min") else None,
        max=point.max if point.HasField("max") else None,
        bounds=list(point.explicit_bounds),
        bucket_counts=list(point.bucket_counts),
    )


def _exemplars(exemplars: Iterable[metrics_pb2.Exemplar]) -> list[Exemplar]:
    return [
        Exemplar(
            value=_number_value(exemplar),
            time_ns=exemplar.time_unix_nano,
            trace_id=exemplar.trace_id.hex() or None,
            span_id=exemplar.span_id.hex() or None,
            attributes=_attributes(exemplar.filtered_attributes),
        )
        for exemplar in exemplars
    ]


def _number_value(holder: metrics_pb2.NumberDataPoint | metrics_pb2.Exemplar) -> float:
    return holder.as_int if holder.WhichOneof("value") == "as_int" else holder.as_double


def _is_delta(metric: metrics_pb2.Metric) -> bool:
    delta = metrics_pb2.AGGREGATION_TEMPORALITY_DELTA
    return delta in (metric.sum.aggregation_temporality, metric.histogram.aggregation_temporality)


def _attributes(pairs: Iterable[KeyValue]) -> Attributes:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    match value.WhichOneof("value"):
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case kind:
            return getattr(value, kind)
