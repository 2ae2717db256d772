"""Every example, run as its docstring says, and what arrives from it over OTLP."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import SpanKind, StatusCode

from tests.examples.programs import (
    EXAMPLES,
    LONGEST_SECONDS,
    instrumented_from_outside,
    python,
    run,
    started,
)
from tests.otlp_data import ReceivedSpan
from tests.otlp_receiver import LOOPBACK, OtlpReceiver

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_SPAN_ID = "b7ad6b7169203331"


def test_app_is_instrumented_from_outside(otlp_grpc: OtlpReceiver, model_folder: Path) -> None:
    app = python(EXAMPLES / "app.py", model_folder)
    printed = run(instrumented_from_outside(app, "--service_name", "my-app"), otlp_grpc)
    assert "Paris" in printed
    (span,) = otlp_grpc.spans()
    assert (span.name, span.parent_span_id) == (f"chat {model_folder.name}", None)
    assert span.resource["service.name"] == "my-app"
    assert_observed(span)
    metrics = otlp_grpc.metrics()
    (risk,) = metrics["corevital.risk.score"].points
    assert (risk.count, risk.sum) == (1, span.attributes["corevital.risk.score"])
    assert {"gen_ai.server.request.duration", "gen_ai.client.operation.duration"} <= set(metrics)
    (evaluation,) = otlp_grpc.logs()
    assert evaluation.event_name == "gen_ai.evaluation.result"
    assert (evaluation.trace_id, evaluation.span_id) == (span.trace_id, span.span_id)


def test_app_shows_its_span_without_a_backend(model_folder: Path) -> None:
    exporters = "--traces_exporter console --metrics_exporter none --logs_exporter none"
    app = python(EXAMPLES / "app.py", model_folder)
    printed = run(instrumented_from_outside(app, *exporters.split()))
    span = json.loads(printed[printed.index("{") :])
    assert span["name"] == f"chat {model_folder.name}"
    assert 0.0 <= span["attributes"]["corevital.risk.score"] <= 1.0


def test_in_code_sends_traces_metrics_and_logs(otlp_grpc: OtlpReceiver, model_folder: Path) -> None:
    assert "Paris" in run(python(EXAMPLES / "in_code.py", model_folder), otlp_grpc)
    (span,) = otlp_grpc.spans()
    assert span.name == f"text_completion {model_folder.name}"
    assert span.resource["service.name"] == "in-code"
    assert_observed(span)
    assert otlp_grpc.metrics()["corevital.risk.score"].points[0].count == 1
    logs = otlp_grpc.logs()
    assert {(log.trace_id, log.span_id) for log in logs} == {(span.trace_id, span.span_id)}
    steps = [log for log in logs if log.event_name == "corevital.step"]
    assert len(steps) == span.attributes["gen_ai.usage.output_tokens"]


def test_pipeline_has_a_span_for_each_sequence(otlp_grpc: OtlpReceiver, model_folder: Path) -> None:
    printed = run(python(EXAMPLES / "pipeline.py", model_folder), otlp_grpc)
    spans = otlp_grpc.spans()
    (own,) = named(spans, "answer questions")
    (call,) = named(spans, "chat ")
    first, second = named(spans, "sequence ")
    assert len(spans) == 4
    assert_child(call, own)
    assert call.attributes["corevital.batch.size"] == 2
    for index, sequence in enumerate((first, second)):
        assert_child(sequence, call)
        assert sequence.attributes["corevital.sequence.index"] == index
        assert_observed(sequence)
        tokens = sequence.attributes["gen_ai.usage.output_tokens"]
        risk = sequence.attributes["corevital.risk.score"]
        level = sequence.attributes["corevital.risk.level"]
        (line,) = [line for line in printed.splitlines() if line.startswith(f"{tokens} tokens, ")]
        assert line.endswith(f"risk {risk:.2f} ({level}), trace {own.trace_id}")


def test_streaming_thread_belongs_to_the_callers_trace(
    otlp_grpc: OtlpReceiver, model_folder: Path
) -> None:
    assert "Paris" in run(python(EXAMPLES / "streaming.py", model_folder), otlp_grpc)
    spans = otlp_grpc.spans()
    (own,) = named(spans, "answer a question")
    (generation,) = named(spans, "chat ")
    assert len(spans) == 2
    assert_child(generation, own)
    assert generation.attributes["gen_ai.request.stream"] is True
    assert_observed(generation)


def test_fastapi_request_is_the_generations_parent(
    otlp_grpc: OtlpReceiver, model_folder: Path, tmp_path: Path
) -> None:
    port, log = free_port(), tmp_path / "service.log"
    service = python(EXAMPLES / "fastapi_service.py", model_folder, "--port", str(port))
    with started(service, otlp_grpc, log) as process:
        wait_until_listening(process, port, log)
        answer = post(
            f"http://{LOOPBACK}:{port}/answer",
            {"question": "What is the capital of France?"},
            {"traceparent": f"00-{TRACE_ID}-{CALLER_SPAN_ID}-01"},
        )
        assert "Paris" in answer["answer"]
        process.send_signal(signal.SIGINT)
        assert process.wait(LONGEST_SECONDS) == 0, log.read_text()
    spans = otlp_grpc.spans()
    (request,) = named(spans, "POST /answer")
    (generation,) = named(spans, "chat ")
    assert len(spans) == 2
    assert (request.trace_id, request.parent_span_id) == (TRACE_ID, CALLER_SPAN_ID)
    assert request.kind is SpanKind.SERVER
    assert_child(generation, request)
    assert_observed(generation)


def test_index_names_every_example() -> None:
    index = (EXAMPLES / "README.md").read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f"({example.name})" in index


def named(spans: list[ReceivedSpan], start: str) -> list[ReceivedSpan]:
    """The spans whose name starts so, sequences of a batch in its order."""
    found = [span for span in spans if span.name.startswith(start)]
    return sorted(found, key=lambda span: span.attributes.get("corevital.sequence.index", 0))


def assert_child(span: ReceivedSpan, parent: ReceivedSpan) -> None:
    assert (span.trace_id, span.parent_span_id) == (parent.trace_id, parent.span_id)
    assert parent.start_ns <= span.start_ns
    assert span.end_ns <= parent.end_ns


def assert_observed(span: ReceivedSpan) -> None:
    """The span says what was found in the generation, and nothing of its text."""
    assert span.scope == "corevital"
    assert span.status.code is StatusCode.UNSET
    attributes = span.attributes
    for signal_name in ("logits", "hidden", "attention", "prompt"):
        assert attributes[f"corevital.capture.{signal_name}"] == "captured"
    assert 0.0 <= attributes["corevital.risk.score"] <= 1.0
    assert attributes["corevital.risk.source"] == "uncalibrated"
    contributions = sum(attributes["corevital.risk.contributions"])
    assert attributes["corevital.risk.heuristic"] == pytest.approx(min(1.0, contributions))
    steps = [event for event in span.events if event.name == "corevital.step"]
    assert len(steps) == attributes["gen_ai.usage.output_tokens"]
    assert all(event.attributes["corevital.step.entropy"] >= 0.0 for event in steps)
    assert "gen_ai.output.messages" not in attributes
    assert not any("corevital.step.token.text" in event.attributes for event in steps)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_listening(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(log.read_text())


def post(url: str, body: dict[str, str], headers: dict[str, str]) -> Any:
    request = urllib.request.Request(
        url, json.dumps(body).encode(), headers | {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LONGEST_SECONDS) as response:
        return json.load(response)
