"""The in-memory providers of the tests."""

from __future__ import annotations

from opentelemetry import metrics, trace
from opentelemetry._logs import LogRecord

from tests.providers import Telemetry


def test_keeps_all_signals_and_leaves_the_global_providers(telemetry: Telemetry) -> None:
    before = trace.get_tracer_provider(), metrics.get_meter_provider()

    with telemetry.tracer_provider.get_tracer("scope").start_as_current_span("span"):
        telemetry.logger_provider.get_logger("scope").emit(LogRecord(event_name="event"))
        telemetry.meter_provider.get_meter("scope").create_counter("count").add(1)

    assert [span.name for span in telemetry.spans()] == ["span"]
    assert [log.log_record.event_name for log in telemetry.logs()] == ["event"]
    assert telemetry.logs()[0].log_record.trace_id == telemetry.spans()[0].context.trace_id
    assert telemetry.metrics().keys() == {"count"}
    assert (trace.get_tracer_provider(), metrics.get_meter_provider()) == before


def test_without_metrics_there_are_none(telemetry: Telemetry) -> None:
    assert telemetry.metrics() == {}
