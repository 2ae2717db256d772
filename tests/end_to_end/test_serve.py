"""``transformers serve`` under ``opentelemetry-instrument``, as a client and a backend see it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from transformers.utils import import_utils

from scripts.smollm2 import safetensors_folder
from tests.batching import only_current
from tests.otlp_data import ReceivedSpan
from tests.otlp_receiver import OtlpReceiver

is_available = getattr(import_utils, "is_serve_available", lambda: False)
pytestmark = [
    only_current,
    pytest.mark.skipif(not is_available(), reason="transformers[serving] is not installed"),
]

ANSWER = "The capital of France is Paris."
BATCHING = ("--continuous-batching", "--cb-num-blocks", "8", "--cb-max-batch-tokens", "256")
START_SECONDS = 120
GAUGES = {
    "corevital.continuous_batching.request.count",
    "corevital.continuous_batching.kv_cache.block.count",
    "corevital.continuous_batching.batch.fill",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def server(receiver: OtlpReceiver, log: Path, *options: str, content: bool) -> Iterator[str]:
    """The address of a server that answers; it is killed at the end, as it may not end itself."""
    folder, port = str(safetensors_folder()), free_port()
    programs = Path(sys.executable).parent
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_METRIC_EXPORT_INTERVAL": "500",
        "OTEL_LOGS_EXPORTER": "none",
    }
    if content:
        variables["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "span_only"
    command = [
        str(programs / "opentelemetry-instrument"), str(programs / "transformers"),
        "serve", folder, "--host", "127.0.0.1", "--port", str(port), *options,
    ]  # fmt: skip
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=output, stderr=output
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_until_it_answers(address, process, log)
        yield address
    finally:
        process.kill()
        process.wait()


def wait_until_it_answers(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            httpx2.get(f"{address}/health").raise_for_status()
        except httpx2.HTTPError:
            time.sleep(0.2)
        else:
            return
    raise AssertionError(f"no server:\n{log.read_text()}")


def body(question: str, **options: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"model": str(safetensors_folder()), "messages": messages, **options}


def ask(address: str, question: str, **options: Any) -> dict[str, Any]:
    response = httpx2.post(
        f"{address}/v1/chat/completions", json=body(question, **options), timeout=60
    )
    answer: dict[str, Any] = response.raise_for_status().json()
    return answer


def stream(address: str, question: str, **options: Any) -> list[dict[str, Any]]:
    asked = body(question, stream=True, **options)
    with httpx2.stream("POST", f"{address}/v1/chat/completions", json=asked, timeout=60) as chunks:
        lines = [line for line in chunks.iter_lines() if line.startswith("data: {")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def chats(receiver: OtlpReceiver) -> list[ReceivedSpan]:
    return [span for span in receiver.spans() if span.scope == "corevital"]


def requests(receiver: OtlpReceiver) -> dict[str, ReceivedSpan]:
    """The spans of the server's HTTP requests, by span id."""
    return {
        span.span_id: span for span in receiver.spans() if span.name == "POST /v1/chat/completions"
    }


@pytest.mark.parametrize("options", [(), BATCHING], ids=["one by one", "continuous batching"])
def test_every_answer_is_a_span_inside_its_http_request(
    options: tuple[str, ...], otlp_grpc: OtlpReceiver, tmp_path: Path
) -> None:
    question = "What is the capital of France?"
    with server(otlp_grpc, tmp_path / "log", *options, content=True) as address:
        answer = ask(address, question, max_tokens=20)
        chunks = stream(address, question, max_tokens=4)
        # The name and then the parent of each arrive when both spans have ended.
        otlp_grpc.wait_for(lambda got: len(chats(got)) == len(requests(got)) == 2, 30)
        otlp_grpc.wait_for(lambda got: "gen_ai.server.time_to_first_token" in got.metrics(), 30)
        if options:
            otlp_grpc.wait_for(lambda got: got.metrics().keys() >= GAUGES, 30)

    whole, streamed = sorted(chats(otlp_grpc), key=lambda span: span.start_ns)
    parents = requests(otlp_grpc)
    assert whole.parent_span_id != streamed.parent_span_id
    for span in (whole, streamed):
        parent = parents[str(span.parent_span_id)]
        assert (span.trace_id, span.name) == (parent.trace_id, f"chat {safetensors_folder().name}")
        assert parent.start_ns <= span.start_ns
        assert span.attributes["corevital.capture.logits"] == "captured"
        attention = span.attributes["corevital.capture.attention"]
        assert ("continuous batching" in attention) == bool(options)
        assert 0 <= span.attributes["corevital.risk.score"] <= 1
        steps = [event for event in span.events if event.name == "corevital.step"]
        assert len(steps) == span.attributes["gen_ai.usage.output_tokens"]
        assert question in span.attributes["gen_ai.input.messages"]
    usage = answer["usage"]
    assert answer["choices"][0]["message"]["content"] == ANSWER
    assert ANSWER in whole.attributes["gen_ai.output.messages"]
    assert whole.attributes["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert whole.attributes["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert whole.attributes["gen_ai.response.finish_reasons"] == ["stop"]
    assert streamed.attributes["gen_ai.response.finish_reasons"] == ["length"]
    assert streamed.attributes["gen_ai.request.stream"] is True
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert "corevital.capture.failure.count" not in otlp_grpc.metrics()
