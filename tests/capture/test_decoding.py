"""What a call of generate asks for, and whether it can be observed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList

from corevital.capture.decoding import GenerateCall, unobservable_decoding
from tests.models import tiny_model

MODEL = tiny_model("llama")


def call(**arguments: Any) -> GenerateCall:
    return GenerateCall(MODEL, arguments)


def test_a_keyword_overrides_the_config_and_that_the_models_own() -> None:
    config = GenerationConfig(max_new_tokens=7)
    assert call(generation_config=config, max_new_tokens=3).setting("max_new_tokens") == 3
    assert call(generation_config=config).setting("max_new_tokens") == 7
    assert call(generation_config=config).setting("eos_token_id") == 1
    assert call().setting("num_beams") in (None, 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(5, {5}), ([5, 6], {5, 6}), (torch.tensor([7, 8]), {7, 8}), (torch.tensor(9), {9})],
)
def test_end_tokens_in_every_form(given: Any, expected: set[int]) -> None:
    assert call(eos_token_id=given).end_tokens == expected


def test_prompt_ids_without_padding() -> None:
    ids = torch.tensor([[0, 0, 5], [6, 7, 8]])
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    assert call(inputs=ids, attention_mask=mask).prompt_ids() == [[5], [6, 7, 8]]
    assert call(input_ids=ids).prompt_ids() == ids.tolist()
    assert call(inputs_embeds=torch.zeros(1, 2, 4)).prompt_ids() == []


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"do_sample": True, "temperature": 0.7},
        {"num_return_sequences": 2},
        {"stopping_criteria": StoppingCriteriaList()},
        {"stopping_criteria": []},
        {"use_cache": False},
    ],
)
def test_greedy_and_sampling_can_be_observed(arguments: dict[str, Any]) -> None:
    assert unobservable_decoding(call(**arguments)) is None


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"num_beams": 2}, "beam search"),
        ({"generation_config": GenerationConfig(num_beams=3)}, "beam search"),
        ({"assistant_model": MODEL}, "assisted decoding"),
        ({"prompt_lookup_num_tokens": 2}, "assisted decoding"),
        ({"custom_generate": "somewhere"}, "custom generate"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive decoding"),
        ({"guidance_scale": 1.5}, "classifier-free guidance"),
        ({"prefill_chunk_size": 4}, "chunked prefill"),
        ({"stopping_criteria": object()}, "stopping criteria that are not a list"),
    ],
)
def test_what_cannot_be_observed_says_why(arguments: dict[str, Any], reason: str) -> None:
    assert unobservable_decoding(call(**arguments)) == reason


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_models_are_not_observed_yet(family: str) -> None:
    assert unobservable_decoding(GenerateCall(tiny_model(family), {})) == "encoder-decoder model"
