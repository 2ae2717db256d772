"""CoreVital switched on for a test, and what its spans, events and metrics say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from opentelemetry.sdk.metrics.export import HistogramDataPoint, Metric, NumberDataPoint
from opentelemetry.sdk.trace import Event, ReadableSpan
from torch import nn

from corevital import CoreVitalInstrumentor
from corevital.capture.active import active_run
from tests.providers import Telemetry

Attributes = dict[str, Any]

TIMES = {"corevital.time.first_token", "corevital.time.per_output_token"}
"""What differs from one generation to its repetition."""


@contextmanager
def instrumented(telemetry: Telemetry, **keywords: Any) -> Iterator[CoreVitalInstrumentor]:
    """Instrument inside the block; ``keywords`` are those of ``instrument``."""
    providers = {
        "tracer_provider": telemetry.tracer_provider,
        "meter_provider": telemetry.meter_provider,
        "logger_provider": telemetry.logger_provider,
    }
    instrumentor = CoreVitalInstrumentor()
    instrumentor.instrument(**(providers | keywords))
    try:
        yield instrumentor
    finally:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


def attributes(of: ReadableSpan | Event) -> Attributes:
    """The attributes of a span or event; sequences are tuples."""
    return dict(of.attributes or {})


def events(span: ReadableSpan, name: str) -> list[Event]:
    """The events of one name, in the order in which they were added."""
    return [event for event in span.events if event.name == name]


def step_indices(span: ReadableSpan) -> list[int]:
    """Of which steps the span has an event."""
    return [attributes(event)["corevital.step.index"] for event in events(span, "corevital.step")]


class Identity(NamedTuple):
    """What a span or log record says of its place in a trace."""

    trace_id: int
    span_id: int


def identity(span: ReadableSpan) -> Identity:
    assert span.context is not None
    return Identity(span.context.trace_id, span.context.span_id)


def parent_identity(span: ReadableSpan) -> Identity | None:
    return None if span.parent is None else Identity(span.parent.trace_id, span.parent.span_id)


def points(metric: Metric) -> list[NumberDataPoint | HistogramDataPoint]:
    found: list[NumberDataPoint | HistogramDataPoint] = []
    for point in metric.data.data_points:
        assert isinstance(point, NumberDataPoint | HistogramDataPoint)
        found.append(point)
    return found


def counted(telemetry: Telemetry, name: str, **by: str) -> float:
    """The sum of a counter over all its points, or of those with ``corevital.<key>.name`` values.

    0 when there is no such counter: nothing was ever counted.
    """
    metric = telemetry.metrics().get(name)
    if metric is None:
        return 0
    total = 0.0
    for point in points(metric):
        assert isinstance(point, NumberDataPoint)
        values = dict(point.attributes or {})
        if all(values.get(f"corevital.{key}.name") == value for key, value in by.items()):
            total += point.value
    return total


def is_observed(model: nn.Module) -> bool:
    """Whether anything would see what this thread generates with the model now."""
    return active_run.get() is not None or hooks_on(model) > 0


def hooks_on(model: nn.Module) -> int:
    """How many hooks there are on a model and its modules."""
    return sum(
        len(hooks)
        for module in model.modules()
        for name, hooks in vars(module).items()
        if name.endswith("_hooks") and isinstance(hooks, dict)
    )
