"""Tail sampling keeps every trace with a risky or failed generation, and a share of the others."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from corevital import semconv
from corevital.assess import signals
from corevital.intervention import Condition
from tests.integration.conftest import StartCollector
from tests.integration.overlays import BASE, to_receiver
from tests.integration.servers import COLLECTOR_CONFIG
from tests.integration.synthetic import sending, trace
from tests.integration.waiting import eventually
from tests.otlp_receiver import OtlpReceiver

SAMPLING = COLLECTOR_CONFIG / "sampling.yaml"
HEALTHY: dict[str, Any] = {
    semconv.RISK_LEVEL: "moderate",
    semconv.NAN_OR_INF: False,
    semconv.REPETITION_LOOP: False,
    semconv.REPETITION_DETECTED: False,
    semconv.MID_LAYER_ANOMALY: False,
    semconv.ATTENTION_COLLAPSE: False,
    # Sound text often has it.
    semconv.SIGNAL_NAMES: [signals.CONFIDENT_REPETITION_RISK],
    semconv.CONSISTENCY_VIOLATIONS: [],
}
RISKY: dict[str, dict[str, Any]] = {
    "high": {semconv.RISK_LEVEL: "high"},
    "critical": {semconv.RISK_LEVEL: "critical"},
    "NaN": {semconv.NAN_OR_INF: True},
    "states that stopped": {semconv.REPETITION_LOOP: True},
    "a loop": {semconv.REPETITION_DETECTED: True},
    "middle layers": {semconv.MID_LAYER_ANOMALY: True},
    "attention": {semconv.ATTENTION_COLLAPSE: True},
    **{
        name: {semconv.SIGNAL_NAMES: [signals.CONFIDENT_REPETITION_RISK, name]}
        for name in signals.SEVERITY
        if name != signals.CONFIDENT_REPETITION_RISK
    },
    **{f"stopped for {each}": {semconv.INTERVENTION_REASON: each.value} for each in Condition},
    "failure of the capture": {semconv.CAPTURE_FAILURES: 1},
    "contradiction": {semconv.CONSISTENCY_VIOLATIONS: ["steps: 3 is not 4"]},
}
SPANS = 3


@pytest.mark.parametrize("percent", [0, 10, 100])
def test_risky_traces_are_kept_whole_and_a_share_of_the_others(
    start_collector: StartCollector, otlp_grpc: OtlpReceiver, tmp_path: Path, percent: int
) -> None:
    collector = start_collector(
        BASE,
        SAMPLING,
        to_receiver(tmp_path, otlp_grpc.endpoint),
        environment={"DECISION_WAIT": "1s", "HEALTHY_PERCENT": str(percent)},
    )

    with sending(collector.grpc, "sampling") as tracer:
        risky = {trace(tracer, HEALTHY | reason) for reason in RISKY.values()}
        risky.add(trace(tracer, HEALTHY, fails=True))
        # Not a generation of CoreVital's: nothing is known of it.
        others = {trace(tracer, {}) for _ in range(100)}
        others |= {trace(tracer, HEALTHY) for _ in range(300)}
        marker = trace(tracer, HEALTHY | RISKY["NaN"])

    # Decisions fall in the order of arrival, and this is the last.
    eventually(lambda: marker in spans_by_trace(otlp_grpc))
    # Stopping, the Collector sends all that it has decided on.
    collector.server.stop()
    kept = spans_by_trace(otlp_grpc)
    assert risky <= kept.keys()
    assert set(kept.values()) == {SPANS}
    assert kept.keys() <= risky | others | {marker}
    share = len(kept.keys() & others) / len(others)
    if percent in (0, 100):
        assert share == percent / 100
    else:
        assert 0.05 < share < 0.15


def spans_by_trace(receiver: OtlpReceiver) -> Counter[str]:
    """How many spans of each trace came."""
    return Counter(span.trace_id for span in receiver.spans())
