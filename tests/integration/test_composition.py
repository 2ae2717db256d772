"""Cleaning, alerts and sampling work together as each does alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from corevital import semconv
from tests.integration.conftest import StartCollector
from tests.integration.overlays import BASE, to_receiver
from tests.integration.queries import get_text
from tests.integration.running import LOOPBACK, free_port
from tests.integration.servers import COLLECTOR_CONFIG
from tests.integration.synthetic import sending, trace
from tests.integration.waiting import eventually
from tests.otlp_receiver import OtlpReceiver

STAGES = ["privacy.yaml", "alerts.yaml", "sampling.yaml"]
CONTENT = "what somebody wrote"
MESSAGES = "gen_ai.input.messages"
MODEL = {"gen_ai.request.model": "model", MESSAGES: CONTENT}
HEALTHY = MODEL | {semconv.RISK_SCORE: 0.1, semconv.RISK_LEVEL: "low"}
RISKY = MODEL | {
    semconv.RISK_SCORE: 0.9,
    semconv.RISK_LEVEL: "high",
    semconv.SIGNAL_NAMES: ["context_loss", "confident_confusion"],
}


@pytest.mark.parametrize("stages", [STAGES, STAGES[::-1]], ids=" ".join)
def test_all_stages_together(
    start_collector: StartCollector, otlp_grpc: OtlpReceiver, tmp_path: Path, stages: list[str]
) -> None:
    metrics = f"{LOOPBACK}:{free_port()}"
    collector = start_collector(
        BASE,
        *(COLLECTOR_CONFIG / stage for stage in stages),
        to_receiver(tmp_path, otlp_grpc.endpoint),
        environment={
            "ALERT_METRICS_ENDPOINT": metrics,
            "DECISION_WAIT": "1s",
            "HEALTHY_PERCENT": "0",
        },
    )

    with sending(collector.grpc, "composed") as tracer:
        risky = {trace(tracer, RISKY) for _ in range(5)}
        for _ in range(20):
            trace(tracer, HEALTHY)
    eventually(lambda: {span.trace_id for span in otlp_grpc.spans()} >= risky)

    # What was counted is what came, not what was kept.
    expected = {
        "assessed": 25,
        "high_risk": 5,
        "context_loss": 5,
        "confident_confusion": 5,
    }
    eventually(lambda: counted(metrics) == expected)
    assert {span.trace_id for span in otlp_grpc.spans()} == risky
    generations = [span for span in otlp_grpc.spans() if semconv.RISK_SCORE in span.attributes]
    assert len(generations) == 5
    for span in generations:
        assert MESSAGES not in span.attributes
        assert list(span.attributes["alert.names"]) == [
            "context_loss",
            "confident_confusion",
            "high_risk",
        ]


def counted(metrics: str) -> dict[str, int]:
    text = get_text(f"http://{metrics}/metrics")
    found = re.findall(r"^generation_alert_(\w+)_total\{.*\} (\d+)$", text, re.M)
    return {name: int(count) for name, count in found}
