"""Step events that are sent as logs are found in Loki by LogQL."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital import Observed
from tests.integration.application import application
from tests.integration.conftest import StartCollector
from tests.integration.overlays import BASE, only
from tests.integration.queries import logql
from tests.integration.servers import Loki
from tests.integration.waiting import eventually
from tests.smollm2 import LoadedModel

SERVICE = "step-logs"
TOKENS = 20
HOUR_NS = 3600 * 10**9


def test_the_steps_of_a_generation_are_found(
    smollm2: LoadedModel, loki: Loki, start_collector: StartCollector, tmp_path: Path
) -> None:
    collector = start_collector(
        BASE, only(tmp_path, "logs"), environment={"LOKI_OTLP_ENDPOINT": loki.otlp}
    )
    observed: list[Observed] = []
    with application(
        collector.grpc, SERVICE, step_events="log", on_generation=observed.append
    ) as app:
        inputs = smollm2.chat("Why is the sky blue?")
        smollm2.model.generate(
            **inputs, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )
        app.flush()
        (span,) = app.spans()
    (generation,) = observed
    record = generation.record
    assert record.logits is not None
    times = (record.start_time_ns - HOUR_NS, record.end_time_ns + HOUR_NS)

    steps = f'{{service_name="{SERVICE}"}} |= "corevital.step"'
    found = eventually(
        lambda: each if len(each := logql(loki.url, steps, *times)) == TOKENS else [],
        patience_s=60,
    )

    assert [int(labels["corevital_step_index"]) for labels in found] == list(range(TOKENS))
    assert [int(labels["corevital_step_token_id"]) for labels in found] == (
        record.token_ids.tolist()
    )
    assert [float(labels["corevital_step_entropy"]) for labels in found] == pytest.approx(
        record.logits.entropy.tolist()
    )
    assert {labels["trace_id"] for labels in found} == {f"{generation.trace_id:032x}"}
    assert span.events == ()

    # A question to the numbers.
    uncertain = int((record.logits.entropy > 1).sum())
    assert 0 < uncertain < TOKENS
    asked = f"{steps} | corevital_step_entropy > 1"
    assert len(logql(loki.url, asked, *times)) == uncertain
