"""Prompt telemetry agrees with the reference and stays in bounded memory."""

from __future__ import annotations

import json
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
