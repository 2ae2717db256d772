"""The shared models are what other tests take them for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.models import FAMILIES, GenerativeModel, tiny_features, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel

NEW_TOKENS = 4


def greedy(model: GenerativeModel, inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(
        inputs, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, **options
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_generates_the_same_each_time(family: str) -> None:
    first, second = tiny_model(family), tiny_model(family)
    inputs = tiny_features(batch=2) if family == "whisper" else tiny_prompt(batch=2)
    tokens = greedy(first, inputs)

    assert not first.training
    assert tokens.shape[-1] >= NEW_TOKENS
    assert torch.equal(tokens, greedy(second, inputs))


def test_the_seed_changes_the_weights_and_leaves_the_global_random_state() -> None:
    before = torch.get_rng_state()
    weights = [next(tiny_model("llama", seed=seed).parameters()) for seed in (0, 1)]

    assert not torch.equal(*weights)
    assert torch.equal(before, torch.get_rng_state())


def test_configuration_can_be_overridden() -> None:
    model = tiny_model("llama", num_hidden_layers=2, attn_implementation="eager")

    assert model.config.num_hidden_layers == 2
    assert model.config._attn_implementation == "eager"


def test_smollm2_answers(smollm2: LoadedModel) -> None:
    inputs = smollm2.chat("What is the capital of France?")
    tokens = smollm2.model.generate(**inputs, max_new_tokens=20, do_sample=False)
    answer = smollm2.tokenizer.decode(
        tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True
    )

    assert answer == "The capital of France is Paris."
    assert smollm2.model.config._attn_implementation == "sdpa"


def test_eager_smollm2_shares_the_weights_only(
    smollm2: LoadedModel, smollm2_eager: LoadedModel
) -> None:
    for shared, own in zip(
        smollm2_eager.model.parameters(), smollm2.model.parameters(), strict=True
    ):
        assert shared.data_ptr() == own.data_ptr()
    assert smollm2_eager.model.config._attn_implementation == "eager"
    assert smollm2.model.config._attn_implementation == "sdpa"

    inputs = smollm2_eager.chat("Hello")
    outputs = smollm2_eager.model.generate(
        **inputs, max_new_tokens=2, return_dict_in_generate=True, output_attentions=True
    )
    assert outputs.attentions[0][0] is not None
