"""Prompt telemetry agrees with the reference and stays in bounded memory."""

from __future__ import annotations

import itertools
import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from corevital.capture import prompt as prompt_module
from corevital.capture.attention import AttentionCall
from corevital.capture.prompt import LayerTransformation, PromptAttention, prompt_surprisal

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


def test_layer_transformation_reference() -> None:
    for case in reference("layer_transformation"):
        states = torch.tensor(case["hidden_states"])
        observed = LayerTransformation(everything_valid(states.shape[1]))
        for layer in range(1, len(states)):
            observed.observe(layer - 1, states[layer - 1][None], states[layer][None])
        observed.reduce()
        values = [observed.by_layer[layer].item() for layer in range(len(states) - 1)]
        assert values == pytest.approx(case["transformations"], abs=1e-5)


@pytest.mark.parametrize("buffer_bytes", [None, 500], ids=["at once", "in chunks"])
def test_prompt_surprisal_reference(
    buffer_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if buffer_bytes is not None:
        monkeypatch.setattr(prompt_module, "LOGITS_BYTES", buffer_bytes)
    for case in reference("prompt_surprisal"):
        logits = torch.tensor(case["logits"])[None]
        surprisal, last = prompt_surprisal(
            logits, nn.Identity(), torch.tensor(case["token_ids"])[None]
        )
        assert surprisal[0].tolist() == pytest.approx(case["surprisal_bits"], abs=1e-3)
        assert torch.equal(last, logits[:, -1])


def test_hooks_of_the_application_on_the_head_see_the_applications_calls_only() -> None:
    head = nn.Linear(4, 8, bias=False)
    seen: list[object] = []
    head.register_forward_hook(lambda module, args, output: seen.append(output))
    prompt_surprisal(torch.randn(1, 3, 4), head, torch.tensor([[1, 2, 3]]))
    assert seen == []


def test_only_one_part_of_the_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Head(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            alive.append(sum(each() is not None for each in made))
            product = super().forward(input)
            made.append(weakref.ref(product))
            return product

    monkeypatch.setattr(prompt_module, "LOGITS_BYTES", 4 * 50 * 3)
    ids = torch.randint(0, 50, (1, 9))
    with torch.no_grad():
        prompt_surprisal(torch.randn(1, 9, 8), Head(8, 50), ids)
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("keeps", [False, True], ids=["a linear layer", "a head that keeps it"])
def test_logits_that_the_head_keeps_stay_as_they_are(keeps: bool) -> None:
    kept: list[torch.Tensor] = []

    class Head(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            kept.append(super().forward(input))
            return kept[-1]

    torch.manual_seed(0)
    head, states = Head(8, 50), torch.randn(2, 9, 8)
    ids = torch.randint(0, 50, (2, 9))
    plain = nn.Linear(8, 50)
    plain.load_state_dict(head.state_dict())
    with torch.no_grad():
        surprisal, newest = prompt_surprisal(states, head if keeps else plain, ids)
        logits = plain(states)
    expected = -torch.log_softmax(logits[:, :-1].double(), -1) / math.log(2)
    torch.testing.assert_close(surprisal.double(), expected.gather(-1, ids[:, 1:, None])[..., 0])
    torch.testing.assert_close(newest, logits[:, -1])
    assert all(torch.equal(each, logits) for each in kept)


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
