"""Sizes are those of what OpenTelemetry's own exporters encode."""

from __future__ import annotations

from collections.abc import Mapping

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from corevital.telemetry.wire_size import attributes_size, record_size, span_size
from tests.providers import in_memory_telemetry

texts = st.text(st.characters(codec="utf-8"), max_size=300)
integers = st.integers(-(2**63), 2**63 - 1)
values = st.one_of(
    *(texts, st.booleans(), integers, st.floats()),
    *(st.lists(each, max_size=40) for each in (texts, st.booleans(), integers, st.floats())),
)
attributes = st.dictionaries(texts.filter(bool), values, max_size=8)


@given(attributes, texts, st.none() | texts, st.booleans())
def test_a_span_weighs_what_is_sent_of_it(
    found: Mapping[str, AttributeValue], name: str, message: str | None, child: bool
) -> None:
    state = TraceState([("vendor", "a"), ("other", "bc")])
    parent = SpanContext(2**127, 2**63, True, TraceFlags(TraceFlags.SAMPLED), state)
    context = set_span_in_context(NonRecordingSpan(parent)) if child else None
    with in_memory_telemetry() as telemetry:
        tracer = telemetry.tracer_provider.get_tracer("test")
        with tracer.start_as_current_span(name, context, SpanKind.CLIENT, found) as span:
            if message is not None:
                span.set_status(Status(StatusCode.ERROR, message))
        (ended,) = telemetry.spans()
    sent = encode_spans([ended]).resource_spans[0].scope_spans[0].spans[0]

    assert span_size(ended) + attributes_size(ended.attributes or {}) == sent.ByteSize()


@given(attributes, texts)
def test_a_log_record_weighs_what_is_sent_of_it(
    found: Mapping[str, AttributeValue], name: str
) -> None:
    with in_memory_telemetry() as telemetry:
        with telemetry.tracer_provider.get_tracer("test").start_as_current_span("span"):
            record = LogRecord(
                timestamp=1,
                severity_number=SeverityNumber.INFO,
                body=name,
                attributes=found,
                event_name=name,
            )
            telemetry.logger_provider.get_logger("test").emit(record)
        (emitted,) = telemetry.logs()
    sent = encode_logs([emitted]).resource_logs[0].scope_logs[0].log_records[0]

    assert record_size(emitted.log_record) == sent.ByteSize()
