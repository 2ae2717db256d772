"""Each head's weight on the previous token is that of the model's own attention matrix."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from corevital.assess.uncertainty import uncertainty
from corevital.capture.attention import AttentionCall, AttentionReducer
from corevital.capture.previous_token import middle_layers, places_within
from corevital.record import GenerationRecord
from tests.capture.observe import observe
from tests.models import HEADS, WINDOW, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel

STEPS = 3 * WINDOW


@pytest.mark.parametrize(
    ("count", "middle"),
    [
        (0, range(0)),
        (1, range(1)),
        (2, range(2)),
        (3, range(1, 3)),
        (4, range(1, 4)),
        (12, range(4, 9)),
        (30, range(10, 21)),
        (32, range(10, 23)),
    ],
)
def test_the_middle_third_has_both_its_ends(count: int, middle: range) -> None:
    assert middle_layers(count) == middle


def test_middle_layers_are_found_among_those_of_a_group() -> None:
    every_second: tuple[int, ...] = (0, 2, 4, 6, 8)

    assert every_second[places_within(every_second, range(3, 7))] == (4, 6)
    assert every_second[places_within(every_second, range(9, 12))] == ()


def own_weights(
    model: Any, sequences: torch.Tensor, mask: torch.Tensor, steps: int
) -> NDArray[np.float64]:
    """Diagonal ``[B, S, L, H]`` of one eager forward pass over the finished sequences.

    Row ``s`` belongs to the token before generated token ``s``.
    """
    everything = torch.cat((mask, mask.new_ones(len(mask), steps)), dim=1)
    positions = (everything.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        outputs = model(
            sequences,
            attention_mask=everything,
            position_ids=positions,
            use_cache=False,
            output_attentions=True,
        )
    diagonals = [layer.diagonal(0, -2, -1)[..., -steps - 1 : -1] for layer in outputs.attentions]
    return torch.stack(diagonals).permute(1, 3, 0, 2).double().numpy()


def assert_weights(record: GenerationRecord, expected: NDArray[np.float64]) -> None:
    """``expected`` is ``[S, L, H]``, of all layers."""
    assert record.attention is not None
    previous = record.attention.previous_token_weight
    assert previous is not None
    layers = middle_layers(expected.shape[1])
    assert previous.layers.tolist() == list(layers)
    assert previous.values.dtype == np.float32
    np.testing.assert_allclose(previous.values, expected[:, list(layers)], rtol=0, atol=2e-3)


def padded_prompts() -> dict[str, torch.Tensor]:
    prompt = tiny_prompt(batch=2)
    mask = torch.ones_like(prompt)
    mask[0, :5] = 0
    return {"input_ids": prompt, "attention_mask": mask}


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        *itertools.product(("llama", "mistral", "qwen3", "gpt2"), ("sdpa", "eager")),
        ("gemma2", "eager"),
        ("gpt_oss", "eager"),
    ],
)
def test_weights_are_the_diagonal_of_the_attention_matrix(family: str, backend: str) -> None:
    """Grouped heads, windows, soft-capping, sinks and padding, each as its model has them."""
    inputs = padded_prompts()
    eager = tiny_model(family, attn_implementation="eager")
    sequences, records = observe(
        tiny_model(family, attn_implementation=backend),
        **inputs,
        do_sample=False,
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
    )

    expected = own_weights(eager, sequences, inputs["attention_mask"], STEPS)

    assert expected.std() > 0.05
    for record, of_sequence in zip(records, expected, strict=True):
        assert_weights(record, of_sequence)


@pytest.mark.parametrize(
    "options",
    [
        {"cache_implementation": "dynamic"},
        {"cache_implementation": "static"},
        {"use_cache": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_every_cache_gives_the_same(family: str, options: dict[str, Any]) -> None:
    inputs = padded_prompts()
    eager = tiny_model(family, attn_implementation="eager")
    for model in (tiny_model(family), eager):
        sequences, records = observe(
            model,
            **inputs,
            **options,
            do_sample=False,
            max_new_tokens=STEPS,
            min_new_tokens=STEPS,
        )
        expected = own_weights(eager, sequences, inputs["attention_mask"], STEPS)
        for record, of_sequence in zip(records, expected, strict=True):
            assert_weights(record, of_sequence)


def test_the_real_model(smollm2: LoadedModel, smollm2_eager: LoadedModel) -> None:
    inputs = smollm2.chat("What is the capital of France?")
    sequences, (record,) = observe(smollm2.model, **inputs, do_sample=False, max_new_tokens=40)

    mask = inputs["attention_mask"]
    (expected,) = own_weights(smollm2_eager.model, sequences, mask, record.steps)

    assert_weights(record, expected)
    assert uncertainty(record).rauq == pytest.approx(by_the_paper(record, expected), abs=0.01)


def by_the_paper(record: GenerationRecord, weight: NDArray[np.float64]) -> float:
    """RAUQ in bits, algorithm 1 of arXiv:2505.20045 with alpha 0.2."""
    assert record.logits is not None
    probability = 2.0 ** -record.logits.surprisal.astype(np.float64)
    worst = -math.inf
    for layer in range(10, 21):
        head = weight[1:, layer].mean(0).argmax()
        confidence = [probability[0]]
        for p, a in zip(probability[1:], weight[1:, layer, head], strict=True):
            confidence.append(0.2 * p + 0.8 * a * confidence[-1])
        worst = max(worst, -float(np.mean(np.log2(confidence))))
    return worst


@pytest.mark.parametrize("mode", ["summary", "on_risk"])
def test_only_full_capture_observes_it(mode: str) -> None:
    _, (record,) = observe(
        tiny_model("llama"), {"capture": mode}, input_ids=tiny_prompt(), max_new_tokens=4
    )

    assert record.attention is not None
    assert record.attention.previous_token_weight is None
    assert math.isnan(uncertainty(record).rauq)


def test_layers_with_fewer_heads_are_padded() -> None:
    reducer = AttentionReducer(weight_layers=range(2))
    for position, heads in enumerate((2, HEADS)):
        query, key = torch.zeros(1, heads, 1, 4), torch.zeros(1, heads, 5, 4)
        reducer.observe(AttentionCall(position, query, key, None, None, {}))
    reducer.end_step(0)
    reducer.finish()

    weights = {chunk.positions: chunk.statistics for chunk in reducer.previous_token}
    assert {positions: len(each) for positions, each in weights.items()} == {(0,): 2, (1,): HEADS}
    assert all(
        torch.allclose(each.float(), torch.tensor(0.2), atol=1e-4) for each in weights.values()
    )
