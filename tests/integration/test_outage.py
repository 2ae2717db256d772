"""A Collector that is killed, restarted or absent: nothing is lost, and the application goes on."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.instrumentation import attributes
from tests.integration.application import Application, application
from tests.integration.conftest import StartCollector
from tests.integration.overlays import BASE, to_receiver
from tests.integration.running import LOOPBACK, free_port
from tests.integration.waiting import eventually
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.otlp_receiver import OtlpReceiver

CALLS = 8
TOKENS = 12
# What an export may take before the exporter gives up, in seconds: a generation that waited for
# one would take as long.
TIMEOUT_S = 10
SHORT_TIMEOUT_S = 1


def generate(model: GenerativeModel, seed: int) -> list[int]:
    """Sample one text; equal seeds give equal tokens."""
    torch.manual_seed(seed)
    arguments: dict[str, Any] = {"do_sample": True, "max_new_tokens": TOKENS, "pad_token_id": 0}
    tokens: list[int] = model.generate(tiny_prompt(), **arguments)[0].tolist()
    return tokens


def span_ids(app: Application) -> set[str]:
    return {f"{span.context.span_id:016x}" for span in app.spans() if span.context is not None}


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def plain(model: GenerativeModel) -> list[list[int]]:
    """What the model says without CoreVital."""
    return [generate(model, seed) for seed in range(3 * CALLS)]


def test_a_collector_that_is_killed_and_restarted_loses_no_generation(
    model: GenerativeModel,
    plain: list[list[int]],
    start_collector: StartCollector,
    otlp_grpc: OtlpReceiver,
    tmp_path: Path,
) -> None:
    files = (BASE, to_receiver(tmp_path, otlp_grpc.endpoint))
    ports = (free_port(), free_port())
    collector = start_collector(*files, ports=ports)

    with application(collector.grpc, "outage", timeout_s=TIMEOUT_S) as app:
        said = [generate(model, seed) for seed in range(CALLS)]
        # What the Collector has taken and not passed on is its own to lose.
        eventually(lambda: arrived(otlp_grpc) == span_ids(app))
        collector.server.kill()
        started = time.monotonic()
        said += [generate(model, CALLS + seed) for seed in range(CALLS)]
        assert time.monotonic() - started < TIMEOUT_S
        start_collector(*files, ports=ports)
        said += [generate(model, 2 * CALLS + seed) for seed in range(CALLS)]
        app.flush()

        assert said == plain
        assert len(app.spans()) == 3 * CALLS
        eventually(lambda: arrived(otlp_grpc) >= span_ids(app))
        # Whole: the token events of each are there.
        for span in otlp_grpc.spans():
            steps = [event for event in span.events if event.name == "corevital.step"]
            assert len(steps) == span.attributes["gen_ai.usage.output_tokens"]


def arrived(receiver: OtlpReceiver) -> set[str]:
    return {span.span_id for span in receiver.spans()}


def test_without_a_collector_the_application_goes_on(
    model: GenerativeModel, plain: list[list[int]]
) -> None:
    nobody = f"http://{LOOPBACK}:{free_port()}"

    with application(nobody, "alone", delay_ms=50, timeout_s=SHORT_TIMEOUT_S) as app:
        started = time.monotonic()
        said = [generate(model, seed) for seed in range(3 * CALLS)]
        assert time.monotonic() - started < SHORT_TIMEOUT_S * len(said)
        assert said == plain
        # Each was observed all the same.
        assert len(app.spans()) == 3 * CALLS
        assert all("corevital.risk.score" in attributes(span) for span in app.spans())
