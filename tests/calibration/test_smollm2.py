"""A real model against a baseline of its own healthy runs, whole and damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from corevital.assess.divergence import Direction, Divergence
from corevital.calibration.baseline import Baseline
from corevital.calibration.divergence import Reference
from corevital.calibration.load import read_calibration
from corevital.record import GenerationRecord
from corevital.telemetry.pipeline import Observed
from tests.calibration.test_load import SMOLLM2
from tests.instrumentation import instrumented
from tests.providers import in_memory_telemetry
from tests.smollm2 import LoadedModel

# None of them is among the prompts that the baseline was made of.
PROMPTS = (
    "What is the capital of Italy?",
    "Describe a busy street in a large city.",
    "How does a refrigerator work?",
)
TOKENS = 16


@pytest.fixture(scope="module")
def baseline() -> Reference:
    file = read_calibration(SMOLLM2)
    assert isinstance(file.content, Baseline)
    return Reference(file.content, file.id)


def runs(
    loaded: LoadedModel, prompts: tuple[str, ...] = PROMPTS, **options: Any
) -> list[GenerationRecord]:
    found: list[Observed] = []
    with (
        in_memory_telemetry() as telemetry,
        instrumented(telemetry, on_generation=found.append, step_events="none"),
    ):
        for number, prompt in enumerate(prompts):
            torch.manual_seed(number)
            decoding = {"do_sample": False, "max_new_tokens": TOKENS} | options
            loaded.model.generate(**loaded.chat(prompt), **decoding)
    return [each.record for each in found]


def compared(
    baseline: Reference, records: list[GenerationRecord]
) -> list[tuple[float, Divergence]]:
    found = [baseline.divergence(record) for record in records]
    return [(each.score, each) for each in found if each.score is not None]


@contextmanager
def scaled(weight: Tensor, factor: float) -> Iterator[None]:
    original = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(factor)
    try:
        yield
    finally:
        with torch.no_grad():
            weight.copy_(original)


def layer(loaded: LoadedModel, number: int) -> Any:
    model: Any = loaded.model
    return model.model.layers[number]


def test_other_healthy_runs_are_close(smollm2: LoadedModel, baseline: Reference) -> None:
    found = compared(baseline, runs(smollm2))

    assert len(found) == len(PROMPTS)
    assert all(score < 0.5 for score, _ in found)
    assert all(each.anomalies == () for _, each in found)


def test_short_answers_are_no_anomaly(smollm2: LoadedModel, baseline: Reference) -> None:
    found = compared(baseline, runs(smollm2, max_new_tokens=2))

    assert all(score < 0.5 for score, _ in found)


def test_a_damaged_layer_is_found_and_named(smollm2: LoadedModel, baseline: Reference) -> None:
    with scaled(layer(smollm2, 14).mlp.down_proj.weight, 8.0):
        found = compared(baseline, runs(smollm2, PROMPTS[:2]))

    for score, divergence in found:
        worst = divergence.anomalies[0]
        assert score > 0.9
        assert worst.quantity == "hidden.l2_norm"
        # It is the first layer that differs; its output stays in the residual stream.
        assert worst.layers[0] == 14
        assert worst.direction is Direction.HIGHER


def test_attention_that_collapses_is_found_and_named(
    smollm2: LoadedModel, baseline: Reference
) -> None:
    with scaled(layer(smollm2, 20).self_attn.q_proj.weight, 30.0):
        found = compared(baseline, runs(smollm2, PROMPTS[:2]))

    for score, divergence in found:
        worst = divergence.anomalies[0]
        assert score > 0.7
        assert (worst.quantity, worst.layers) == ("attention.collapsed_heads", (20,))
        assert divergence.more_collapsed_heads


def test_text_sampled_at_random_is_found(smollm2: LoadedModel, baseline: Reference) -> None:
    heated = {"do_sample": True, "temperature": 5.0, "top_k": 0}
    found = compared(baseline, runs(smollm2, PROMPTS[:2], **heated))

    for score, divergence in found:
        assert score > 0.9
        assert [each.quantity for each in divergence.anomalies[:2]] == ["surprisal", "entropy"]
        assert all(each.direction is Direction.HIGHER for each in divergence.anomalies[:2])
