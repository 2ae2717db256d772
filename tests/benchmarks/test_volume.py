"""What a generation sends is counted as it is received."""

from __future__ import annotations

from functools import partial

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from benchmarks.volume import TOKENS, counts, series, volumes
from corevital.record import CaptureMode
from tests.models import GenerativeModel, tiny_model, tiny_prompt


def generate(model: GenerativeModel, tokens: int) -> object:
    return model.generate(
        tiny_prompt(), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )


def test_the_more_is_captured_the_more_is_sent() -> None:
    found = {each.capture: each for each in volumes(partial(generate, tiny_model("llama")))}
    full, summary, off = (
        found[mode] for mode in (CaptureMode.FULL, CaptureMode.SUMMARY, CaptureMode.OFF)
    )

    assert found.keys() == set(CaptureMode)
    assert off.events == off.logs == 0 < off.attributes
    # Every token, the layers, the prompt; and the evaluation as a log.
    assert (full.events, full.logs) == (TOKENS + 2, TOKENS + 3)
    # A summary has one layer, and no prompt.
    assert (summary.events, summary.logs) == (TOKENS + 1, TOKENS + 2)
    assert 0 < off.series < summary.series <= full.series
    assert counts(list(found.values())).count("\n") == len(CaptureMode) + 1


def test_a_histogram_has_a_series_for_each_bucket_and_two_more() -> None:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    meter = provider.get_meter("test")
    meter.create_counter("count").add(1)
    histogram = meter.create_histogram("size", explicit_bucket_boundaries_advisory=[1, 2, 3])
    for color in ("red", "blue"):
        histogram.record(2, {"color": color})

    assert series(reader.get_metrics_data()) == 1 + 2 * (4 + 2)
    assert series(None) == 0
    provider.shutdown()
