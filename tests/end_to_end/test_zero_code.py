"""Applications that know nothing of CoreVital, run under ``opentelemetry-instrument``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.smollm2 import safetensors_folder
from tests.otlp_data import ReceivedSpan
from tests.otlp_receiver import OtlpReceiver

ROOT = Path(__file__).parents[2]
APPS = Path(__file__).parent / "apps"
SERVICE = "zero-code-test"
ANSWER = "The capital of France is Paris."
STANDARD_METRICS = {
    "gen_ai.client.operation.duration",
    "gen_ai.client.token.usage",
    "gen_ai.server.request.duration",
    "gen_ai.server.time_per_output_token",
    "gen_ai.server.time_to_first_token",
}


def run(
    *arguments: str, receiver: OtlpReceiver | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a program under ``opentelemetry-instrument`` until it ends."""
    exporter = "none" if receiver is None else "otlp"
    variables = {
        "OTEL_SERVICE_NAME": SERVICE,
        "OTEL_TRACES_EXPORTER": exporter,
        "OTEL_METRICS_EXPORTER": exporter,
        "OTEL_LOGS_EXPORTER": exporter,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
    }
    if receiver is not None:
        variables["OTEL_EXPORTER_OTLP_ENDPOINT"] = receiver.endpoint
    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    return subprocess.run(
        [str(instrument), sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, **variables, **environment},
        capture_output=True,
        text=True,
        check=True,
    )


def check_record(span: ReceivedSpan, operation: str) -> None:
    written = span.attributes
    tokens = written["gen_ai.usage.output_tokens"]
    assert span.name == f"{operation} {written['gen_ai.request.model']}"
    assert span.resource["service.name"] == SERVICE
    assert span.scope == "corevital"
    for signal in ("logits", "hidden", "attention", "prompt"):
        assert written[f"corevital.capture.{signal}"] == "captured"
    assert 0 <= written["corevital.risk.score"] <= 1
    steps = [event for event in span.events if event.name == "corevital.step"]
    assert len(steps) == written["corevital.capture.steps"] == tokens
    assert all(span.start_ns <= event.time_ns <= span.end_ns for event in span.events)


def test_a_pipeline_is_traced_without_a_line_of_code(otlp_grpc: OtlpReceiver) -> None:
    folder = str(safetensors_folder())
    finished = run(str(APPS / "chat.py"), folder, receiver=otlp_grpc)

    assert finished.stdout.splitlines()[0] == ANSWER
    chat, plain = otlp_grpc.spans()
    check_record(chat, "chat")
    check_record(plain, "text_completion")
    assert chat.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert plain.attributes["gen_ai.response.finish_reasons"] == ["length"]
    evaluations = [log for log in otlp_grpc.logs() if log.event_name == "gen_ai.evaluation.result"]
    assert {(log.trace_id, log.span_id) for log in evaluations} == {
        (span.trace_id, span.span_id) for span in (chat, plain)
    }
    metrics = otlp_grpc.metrics()
    assert metrics.keys() >= STANDARD_METRICS | {"corevital.risk.score", "corevital.step.count"}
    assert "corevital.capture.failure.count" not in metrics


def test_a_streamed_answer_is_traced_in_its_thread(otlp_grpc: OtlpReceiver) -> None:
    folder = str(safetensors_folder())
    finished = run(
        str(APPS / "streaming.py"), folder, receiver=otlp_grpc, COREVITAL_STEP_EVENTS="both"
    )

    assert ANSWER in finished.stdout
    spans = {span.scope: span for span in otlp_grpc.spans()}
    generation, request = spans["corevital"], spans["app"]
    check_record(generation, "chat")
    # A thread begins with an empty context, so its generation begins a trace.
    assert generation.parent_span_id is None
    assert generation.trace_id != request.trace_id
    assert request.start_ns <= generation.start_ns <= generation.end_ns
    assert generation.attributes["gen_ai.request.stream"] is True
    assert generation.attributes["gen_ai.response.time_to_first_chunk"] > 0
    steps = [log for log in otlp_grpc.logs() if log.event_name == "corevital.step"]
    assert len(steps) == generation.attributes["corevital.capture.steps"]
    assert {log.span_id for log in steps} == {generation.span_id}


def test_a_bad_setting_is_reported_and_the_application_runs() -> None:
    finished = run("-c", "print('runs')", COREVITAL_CAPTURE="all")

    assert finished.stdout == "runs\n"
    assert "SettingsError: COREVITAL_CAPTURE='all': accepted" in finished.stderr


@pytest.mark.parametrize(("enabled", "imported"), [("true", "True"), ("false", "False")])
def test_disabled_it_imports_nothing_heavy(enabled: str, imported: str) -> None:
    finished = run("-c", "import sys; print('torch' in sys.modules)", COREVITAL_ENABLED=enabled)

    assert finished.stdout == f"{imported}\n"
    assert finished.stderr == ""
