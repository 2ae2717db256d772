"""Prompt telemetry agrees with the reference and stays in bounded memory."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from corevital.capture import prompt as prompt_module
from corevital.capture.attention import AttentionCall
from corevital.capture.prompt import LayerTransformation, PromptAttention
from corevital.capture.prompt_columns import sparse_weights
from corevital.capture.run_memory import RunMemory

FOLDER = Path(__file__).parents[1] / "reference"


def reference(name: str) -> list[dict[str, Any]]:
    cases: list[dict[str, Any]] = json.loads((FOLDER / f"{name}.json").read_text())
    return cases


def everything_valid(tokens: int) -> torch.Tensor:
    return torch.ones(1, tokens, dtype=torch.bool)


@pytest.mark.parametrize("chunk_bytes", [None, 500], ids=["at once", "a few queries at a time"])
@pytest.mark.parametrize("case", reference("basin"), ids=lambda c: f"{len(c['attention'][0])} keys")
def test_basin_reference(
    case: dict[str, Any], chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk_bytes is not None:
        monkeypatch.setattr(prompt_module, "CHUNK_BYTES", chunk_bytes)
    weights = torch.tensor(case["attention"])[None]
    heads, tokens = weights.shape[1:3]
    observed = PromptAttention(everything_valid(tokens))
    query = torch.zeros(1, heads, tokens, 4)
    observed.observe(AttentionCall(0, query, query, None, weights, {}))
    observed.reduce()
    assert observed.basin[0][0].tolist() == pytest.approx(case["basin_scores"], abs=1e-3)
    assert observed.sparse[0].total[0, 0].tolist() == case["sparse_0_01_counts"]


def test_memory_is_held_between_the_layers_of_a_short_prompt_only() -> None:
    """Of a long one, it would add to the model's own peak."""
    for tokens, is_long in ((8, False), (800, True)):
        memory = RunMemory()
        observed = PromptAttention(everything_valid(tokens), memory=memory)
        states = torch.randn(1, 1, tokens, 4)
        for layer in range(3):
            observed.observe(AttentionCall(layer, states, states, None, None, {}))
            assert memory.products.nbytes == memory.results.nbytes == 0
        observed.reduce()
        held = memory.products.nbytes, memory.results.nbytes
        assert held == (0, 0) if is_long else min(held) > 0
        assert set(observed.basin) == {0, 1, 2}


def test_layer_transformation_reference() -> None:
    for case in reference("layer_transformation"):
        states = torch.tensor(case["hidden_states"])
        observed = LayerTransformation(everything_valid(states.shape[1]))
        for layer in range(1, len(states)):
            observed.observe(layer - 1, states[layer - 1][None], states[layer][None])
        observed.reduce()
        values = [observed.by_layer[layer].item() for layer in range(len(states) - 1)]
        assert values == pytest.approx(case["transformations"], abs=1e-5)


def test_a_layer_is_given_something_else_than_the_one_before_returned() -> None:
    torch.manual_seed(0)
    embedded, first, second, third = torch.randn(4, 1, 5, 8)
    observed = LayerTransformation(everything_valid(5))
    observed.observe(0, embedded, first)
    observed.observe(1, None, second)
    observed.observe(2, embedded, third)
    observed.observe(3, embedded[..., :4], first)
    observed.observe(4, None, second)
    observed.reduce()
    pairs = {0: (embedded, first), 1: (first, second), 2: (embedded, third), 4: (first, second)}
    assert set(observed.by_layer) == set(pairs)
    for position, (before, after) in pairs.items():
        expected = 1 - torch.cosine_similarity(before, after, dim=-1).mean()
        torch.testing.assert_close(observed.by_layer[position][0], expected)


@pytest.mark.parametrize("chunk_bytes", [None, 500], ids=["at once", "a few queries at a time"])
def test_of_a_layer_that_attends_several_times_the_last_counts(
    chunk_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if chunk_bytes is not None:
        monkeypatch.setattr(prompt_module, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    valid = everything_valid(9)
    query = torch.zeros(1, 2, 9, 4)
    weights = torch.randn(3, 1, 2, 9, 9).mul_(3).softmax(-1)
    several, last = PromptAttention(valid), PromptAttention(valid)
    for observed, calls in ((several, ((0, 0), (1, 1), (0, 2))), (last, ((1, 1), (0, 2)))):
        for position, place in calls:
            observed.observe(AttentionCall(position, query, query, None, weights[place], {}))
        observed.reduce()
    for position in (0, 1):
        torch.testing.assert_close(several.basin[position], last.basin[position])
    (ours,), (expected,) = (sparse_weights(each.sparse, valid) for each in (several, last))
    assert ours is not None
    assert expected is not None
    assert ours.total == expected.total > 0
    for field in ("layer", "head", "query", "key", "weight"):
        np.testing.assert_array_equal(*(getattr(each, field) for each in (ours, expected)))


def test_layers_of_a_long_prompt_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layers = torch.randn(4, 2, 30, 8)
    valid = torch.ones(2, 30, dtype=torch.bool)
    valid[0, :11] = False

    def transformation() -> list[torch.Tensor]:
        observed = LayerTransformation(valid)
        for position, (before, after) in enumerate(itertools.pairwise(layers)):
            observed.observe(position, before, after)
        observed.reduce()
        return [observed.by_layer[position] for position in range(3)]

    at_once = transformation()
    monkeypatch.setattr(prompt_module, "CHUNK_BYTES", 4 * 2 * 8 * 7)
    torch.testing.assert_close(transformation(), at_once)


@pytest.mark.parametrize("own", [True, False], ids=["each row its own", "one for all rows"])
def test_masks_and_biases_of_all_rows_are_those_of_the_prompts(*, own: bool) -> None:
    """Of three rows to each of two prompts."""
    torch.manual_seed(0)
    heads, tokens, repeated = 2, 6, 3
    query, key = torch.randn(2, 2, heads, tokens, 4)
    rows = 2 if own else 1
    mask = torch.rand(rows, 1, tokens, tokens) < 0.7
    mask |= torch.eye(tokens, dtype=torch.bool)
    bias = torch.randn(rows, heads, tokens, tokens)
    valid = torch.ones(2, tokens, dtype=torch.bool)

    def basin(answers: int) -> torch.Tensor:
        observed = PromptAttention(valid, answers=answers)
        q, k = (given.repeat_interleave(answers, dim=0) for given in (query, key))
        m, b = (given.repeat_interleave(answers, dim=0) if own else given for given in (mask, bias))
        observed.observe(AttentionCall(0, q, k, m, None, {"position_bias": b}))
        observed.reduce()
        return observed.basin[0]

    torch.testing.assert_close(basin(repeated), basin(1))
