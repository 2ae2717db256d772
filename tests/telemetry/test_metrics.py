"""Metrics describe every generation in a few attributes; their exemplars lead to its trace."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics.export import HistogramDataPoint, NumberDataPoint

from corevital import Observed, semconv
from corevital.capture.attention import AttentionReducer
from corevital.telemetry.metrics import GenerationMetrics
from tests.instrumentation import attributes, counted, identity, points
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import STEPS, greedy

GENERATIONS = 2

# Unit and advised boundaries of the standard metrics, from the semantic conventions.
SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
STANDARD: dict[str, tuple[str, tuple[float, ...]]] = {
    "gen_ai.client.operation.duration": ("s", SECONDS),
    "gen_ai.client.token.usage": ("{token}", tuple(4.0**power for power in range(14))),
    "gen_ai.server.request.duration": ("s", SECONDS),
    "gen_ai.server.time_to_first_token": (
        "s",
        (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    ),
    "gen_ai.server.time_per_output_token": (
        "s",
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5),
    ),
}


def histogram(telemetry: Telemetry, name: str) -> HistogramDataPoint:
    (point,) = points(telemetry.metrics()[name])
    assert isinstance(point, HistogramDataPoint)
    return point


def generate(model: GenerativeModel, instrument: Instrument) -> list[Observed]:
    seen: list[Observed] = []
    instrument(on_generation=seen.append)
    for seed in range(GENERATIONS):
        greedy(model, tiny_prompt(seed=seed))
    return seen


def test_standard_metrics_have_the_units_and_boundaries_of_the_conventions(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    generate(model, instrument)
    found = telemetry.metrics()

    for name, (unit, boundaries) in STANDARD.items():
        assert found[name].unit == unit, name
        for point in points(found[name]):
            assert isinstance(point, HistogramDataPoint)
            assert tuple(point.explicit_bounds) == boundaries, name


def test_own_metrics_have_the_units_and_boundaries_that_are_declared(
    telemetry: Telemetry,
) -> None:
    metrics = GenerationMetrics(telemetry.meter_provider)
    for metric in semconv.METRICS:
        if metric.instrument == "histogram":
            metrics._histograms[metric.name].record(1.0)
        elif metric.instrument == "counter":
            metrics._counters[metric.name].add(1)
    metrics.read_gauges(
        {
            metric.name: lambda _: [Observation(1)]
            for metric in semconv.METRICS
            if metric.instrument in ("gauge", "updowncounter")
        }
    )

    found = telemetry.metrics()
    assert found.keys() == {metric.name for metric in semconv.METRICS}
    for metric in semconv.METRICS:
        assert found[metric.name].unit == metric.unit
        assert found[metric.name].description == metric.brief
        (point,) = points(found[metric.name])
        if isinstance(point, HistogramDataPoint):
            assert metric.buckets != ()
            assert tuple(point.explicit_bounds) == metric.buckets


def test_every_generation_is_a_value_of_the_distributions_its_mean(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    seen = generate(model, instrument)

    for name in ("entropy", "surprisal", "margin"):
        means = [float(getattr(each.record.logits, name).mean()) for each in seen]
        point = histogram(telemetry, f"corevital.generation.{name}")
        assert point.count == GENERATIONS
        assert point.sum == pytest.approx(sum(means), rel=1e-5)
        assert point.min == pytest.approx(min(means), rel=1e-5)
        assert point.max == pytest.approx(max(means), rel=1e-5)


def test_every_generation_is_a_value_of_the_risk(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    seen = generate(model, instrument)
    scores = [each.assessment.risk.score for each in seen if each.assessment is not None]

    point = histogram(telemetry, "corevital.risk.score")
    assert point.count == GENERATIONS
    assert point.sum == pytest.approx(sum(scores))


def test_attributes_are_few_and_the_same_everywhere(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    generate(model, instrument)
    common = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "huggingface",
        "gen_ai.request.model": "LlamaForCausalLM",
    }
    own = {
        "gen_ai.client.token.usage": {"gen_ai.token.type"},
        "corevital.generation.count": {"corevital.capture.mode"},
        "corevital.risk.score": {"corevital.risk.source"},
        "corevital.early_warning.count": {"corevital.signal.name"},
        "corevital.signal.count": {"corevital.signal.name"},
        "corevital.health.flag.count": {"corevital.flag.name"},
    }

    for name, metric in telemetry.metrics().items():
        for point in points(metric):
            found: dict[str, Any] = dict(point.attributes or {})
            assert {key: found.pop(key) for key in common} == common, name
            if name != "corevital.blame.count":
                assert found.keys() == own.get(name, set()), name


def test_exemplars_lead_to_the_span(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    generate(model, instrument)
    spans = {identity(span) for span in telemetry.spans()}

    for name, metric in telemetry.metrics().items():
        for point in points(metric):
            assert point.exemplars, name
            for exemplar in point.exemplars:
                assert (exemplar.trace_id, exemplar.span_id) in spans, name


def test_exemplars_of_a_batch_lead_to_the_sequence(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, tiny_prompt(batch=3))

    *sequences, call = telemetry.spans()
    of_sequences = {identity(span) for span in sequences}
    metrics = telemetry.metrics()
    for name in ("corevital.risk.score", "corevital.generation.entropy", "corevital.step.count"):
        for point in points(metrics[name]):
            assert {(e.trace_id, e.span_id) for e in point.exemplars} <= of_sequences, name
    (point,) = points(metrics["gen_ai.server.request.duration"])
    assert {(e.trace_id, e.span_id) for e in point.exemplars} == {identity(call)}


def test_server_times_are_those_of_the_tokens(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, max_new_tokens=20, min_new_tokens=20)

    (span,) = telemetry.spans()
    written = attributes(span)
    assert span.start_time is not None
    assert span.end_time is not None
    first = histogram(telemetry, "gen_ai.server.time_to_first_token")
    each = histogram(telemetry, "gen_ai.server.time_per_output_token")
    whole = histogram(telemetry, "gen_ai.server.request.duration")
    assert first.sum == pytest.approx(written["corevital.time.first_token"], abs=1e-6)
    assert each.sum == pytest.approx(written["corevital.time.per_output_token"], abs=1e-6)
    assert whole.sum == pytest.approx((span.end_time - span.start_time) / 1e9, abs=5e-3)
    assert whole.sum >= first.sum + 19 * each.sum


def test_one_token_has_no_time_per_output_token(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, max_new_tokens=1, min_new_tokens=1)

    assert "gen_ai.server.time_to_first_token" in telemetry.metrics()
    assert "gen_ai.server.time_per_output_token" not in telemetry.metrics()


def test_the_client_duration_is_that_of_the_call(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, max_new_tokens=60, min_new_tokens=60)

    client = histogram(telemetry, "gen_ai.client.operation.duration").sum
    server = histogram(telemetry, "gen_ai.server.request.duration").sum
    assert client == pytest.approx(server, rel=0.25)


def test_token_usage_counts_input_and_output(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, tiny_prompt(tokens=9))

    usage = {
        dict(point.attributes or {})["gen_ai.token.type"]: getattr(point, "sum", None)
        for point in points(telemetry.metrics()["gen_ai.client.token.usage"])
    }
    assert usage == {"input": 9, "output": STEPS}


def test_the_cost_is_a_part_of_the_time_that_the_caller_waits(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    started = time.perf_counter()
    greedy(model)
    waited = time.perf_counter() - started

    assert 0 < histogram(telemetry, "corevital.capture.duration").sum < waited


def test_what_is_reduced_at_the_end_costs_once(
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finish = AttentionReducer.finish

    def slow(reducer: AttentionReducer) -> None:
        time.sleep(0.5)
        finish(reducer)

    monkeypatch.setattr(AttentionReducer, "finish", slow)
    instrument()
    started = time.perf_counter()
    greedy(model, tiny_prompt())
    waited = time.perf_counter() - started
    assert 0.5 < histogram(telemetry, "corevital.capture.duration").sum < waited


@pytest.mark.parametrize(("capture", "steps"), [("full", STEPS), ("summary", STEPS), ("off", 0)])
def test_generations_are_counted_by_capture_mode_and_steps_where_they_were_observed(
    capture: str,
    steps: int,
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    instrument(capture=capture)
    greedy(model)

    (point,) = points(telemetry.metrics()["corevital.generation.count"])
    assert isinstance(point, NumberDataPoint)
    assert point.value == 1
    assert dict(point.attributes or {})["corevital.capture.mode"] == capture
    assert counted(telemetry, "corevital.step.count") == steps


def with_nan(model: GenerativeModel, layer: int) -> GenerativeModel:
    weights: Any = model
    with torch.no_grad():
        weights.model.layers[layer].mlp.down_proj.weight.fill_(math.nan)
    return model


def test_flags_and_blamed_layers_are_counted(telemetry: Telemetry, instrument: Instrument) -> None:
    instrument()
    for _ in range(2):
        greedy(with_nan(tiny_model("llama"), layer=2))

    assert counted(telemetry, "corevital.health.flag.count", flag="nan_or_inf") == 2
    assert counted(telemetry, "corevital.health.flag.count", flag="attention_collapse") == 0
    layers = {
        dict(point.attributes or {})["corevital.blame.layer"]: getattr(point, "value", None)
        for point in points(telemetry.metrics()["corevital.blame.count"])
    }
    # NaN goes on from the layer where it came up.
    assert {layer for layer, count in layers.items() if count == 2} == {2, 3}
    assert histogram(telemetry, "corevital.risk.score").min == 1.0


def test_nan_is_no_value_of_a_distribution(telemetry: Telemetry, instrument: Instrument) -> None:
    instrument()
    greedy(with_nan(tiny_model("llama"), layer=0))

    assert "corevital.generation.entropy" not in telemetry.metrics()
    assert counted(telemetry, "corevital.step.count") == STEPS


def test_early_warnings_are_counted_by_name(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model)

    raised = attributes(telemetry.spans()[0])["corevital.early_warning.signals"]
    assert raised != ()
    for name in raised:
        assert counted(telemetry, "corevital.early_warning.count", signal=name) == 1
