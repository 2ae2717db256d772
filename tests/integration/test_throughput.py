"""Ten thousand generations through one Collector: none is lost, and none comes out changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import ReadableSpan

from tests.instrumentation import instrumented
from tests.integration.conftest import StartCollector
from tests.integration.overlays import BASE, to_receiver
from tests.integration.replay import copies, send
from tests.integration.waiting import eventually
from tests.models import tiny_model, tiny_prompt
from tests.otlp_receiver import OtlpReceiver
from tests.providers import in_memory_telemetry

GENERATIONS = 10_000


def generation(**settings: str) -> ReadableSpan:
    """The span of a real generation of 32 tokens."""
    with in_memory_telemetry() as telemetry, instrumented(telemetry, **settings):
        tiny_model("llama").generate(
            tiny_prompt(), max_new_tokens=32, min_new_tokens=32, pad_token_id=0
        )
        (span,) = telemetry.spans()
    return span


def wire(span: ReadableSpan) -> Span:
    """A span as it is sent, without its identifiers."""
    sent: Span = encode_spans([span]).resource_spans[0].scope_spans[0].spans[0]
    return anonymous(sent)


def anonymous(span: Span) -> Span:
    span.ClearField("trace_id")
    span.ClearField("span_id")
    return span


def received(receiver: OtlpReceiver) -> list[Span]:
    return [
        span
        for request in receiver.requests(ExportTraceServiceRequest)
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]


@pytest.mark.parametrize(
    ("step_events", "count"), [("none", GENERATIONS), ("span", GENERATIONS // 10)]
)
def test_none_is_lost_and_none_is_changed(
    start_collector: StartCollector,
    otlp_grpc: OtlpReceiver,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    step_events: str,
    count: int,
) -> None:
    collector = start_collector(BASE, to_receiver(tmp_path, otlp_grpc.endpoint))
    span = generation(step_events=step_events)
    size = len(wire(span).SerializeToString())

    started = time.perf_counter()
    send(copies(span, count), collector.grpc, count)
    eventually(lambda: len(received(otlp_grpc)) >= count, patience_s=60)
    seconds = time.perf_counter() - started

    arrived = received(otlp_grpc)
    numbers = sorted(int.from_bytes(each.span_id, "big") for each in arrived)
    assert numbers == list(range(1, count + 1))
    expected = wire(span)
    assert all(anonymous(each) == expected for each in arrived)
    with capsys.disabled():
        print(
            f"\n{count} generations of {size} bytes (step events: {step_events}) "
            f"in {seconds:.1f} s: {count / seconds:.0f} a second"
        )
