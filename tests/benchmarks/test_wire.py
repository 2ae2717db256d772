"""Bytes on the wire are counted right, and a generation without step events stays small."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from benchmarks.wire import RESULTS, Weight, generations, measure, metrics, too_heavy, weighing
from corevital import intervene
from corevital.record import CaptureMode
from corevital.settings import StepEvents
from corevital.telemetry.size_limit import LIMIT
from tests.end_to_end.exporting import exporting
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.otlp_receiver import LogsRequest, TraceRequest
from tests.smollm2 import LoadedModel


def generate(model: GenerativeModel, tokens: int) -> object:
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
    return model.generate(tiny_prompt(), **length, do_sample=False)


def weight(model: GenerativeModel, tokens: int, **settings: str) -> Weight:
    with weighing(**settings) as weigh:
        plain, gzip = weigh(partial(generate, model, tokens))
    assert 0 < gzip.alone < plain.alone
    assert plain.generation == gzip.generation
    return plain


def test_content_is_that_of_the_spans_and_records() -> None:
    model = tiny_model("llama")
    with exporting("http") as pipelines:
        generate(model, 6)
        pipelines.flush()
        (traces,) = pipelines.receiver.requests(TraceRequest)
        (logs,) = pipelines.receiver.requests(LogsRequest)
    span = traces.resource_spans[0].scope_spans[0].spans[0]
    record = logs.resource_logs[0].scope_logs[0].log_records[0]
    found = weight(model, 6)

    # Numbers in words, and so the narrative, differ by a few bytes between runs.
    assert found.spans.content == pytest.approx(span.ByteSize(), abs=20)
    assert found.logs.content == pytest.approx(record.ByteSize(), abs=20)
    assert 0 < found.alone - found.generation < 1000


@pytest.mark.parametrize("tokens", [10, 300])
def test_without_step_events_a_generation_stays_small(tokens: int) -> None:
    assert weight(tiny_model("llama"), tokens, step_events="none").generation < LIMIT


def test_a_fault_in_every_layer_of_a_deep_model_stays_small() -> None:
    model = tiny_model("llama", num_hidden_layers=126)
    model.get_parameter("model.layers.0.mlp.down_proj.weight").data.fill_(torch.inf)

    assert weight(model, 10, step_events="none").generation < LIMIT


@pytest.mark.parametrize("capture", CaptureMode)
def test_an_encoder_decoder_with_beams_that_fails_to_stay_finite_stays_small(
    capture: CaptureMode,
) -> None:
    model: Any = tiny_model("bart", decoder_layers=24, encoder_layers=24)
    for half in (model.get_encoder(), model.get_decoder()):
        half.layers[0].fc2.weight.data.fill_(torch.inf)

    def call() -> object:
        with intervene(["repetition", "non_finite", "risk"]):
            return model.generate(tiny_prompt(), max_new_tokens=12, num_beams=3)

    with weighing(capture=capture, step_events="none") as weigh:
        plain, _ = weigh(call)

    assert 0 < plain.generation < LIMIT


def test_a_real_generation_stays_small(smollm2: LoadedModel) -> None:
    inputs = smollm2.chat("What is the capital of France?")
    with weighing(step_events="none") as weigh:
        plain, _ = weigh(partial(smollm2.model.generate, **inputs, max_new_tokens=24))

    assert 0 < plain.generation < LIMIT


def test_step_events_on_the_span_are_bounded() -> None:
    model = tiny_model("llama")
    few, many, more = (weight(model, tokens).spans.content for tokens in (20, 200, 400))

    assert few < many
    assert more < 1.02 * many


def test_every_way_is_measured() -> None:
    rows = list(measure(partial(generate, tiny_model("llama")), [4]))
    events = {(row.capture, row.step_events) for row in rows}

    assert len(events) == len(rows) == 3 * len(StepEvents) + 1
    assert (CaptureMode.OFF, StepEvents.NONE) in events
    by_way = {(row.capture, row.step_events): row.plain for row in rows}
    full = {where: by_way[CaptureMode.FULL, where] for where in StepEvents}
    assert full[StepEvents.SPAN].spans.content > full[StepEvents.NONE].spans.content
    assert full[StepEvents.LOG].logs.content > full[StepEvents.NONE].logs.content
    assert generations(rows).count("\n") == len(rows) + 1
    assert metrics(rows).count("\n") == len(CaptureMode) + 1
    assert too_heavy(rows) == []


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_production_says_what_was_measured() -> None:
    measured = rows(RESULTS.read_text(encoding="utf-8"))
    generations_ = [[*row[:5], row[7]] for row in measured if len(row) == 9]
    by_number = [row for row in measured if len(row) == 5]
    page = RESULTS.parents[2] / "docs" / "production.md"
    _, _, sizing = page.read_text(encoding="utf-8").partition("## Sizing")
    told = rows(sizing.partition("## Sampling")[0])

    assert len(generations_) == 26
    assert len(by_number) == len(CaptureMode)
    assert [row for row in told if len(row) == 5] == by_number
    sizes = [row for row in told if len(row) == 6]
    assert len(sizes) > 10
    assert [row for row in sizes if row not in generations_] == []
    for row in generations_:
        if "`none`" in row[0]:
            assert int(row[4]) < LIMIT
