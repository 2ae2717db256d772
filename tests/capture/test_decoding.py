"""What a call of generate asks for, and whether it can be observed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, StoppingCriteriaList

from corevital.capture.decoding import Decoding, GenerateCall, decoding_of, unobservable_decoding
from tests.models import tiny_model, tiny_prompt

MODEL = tiny_model("llama")
PROMPT = tiny_prompt()


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
        {"stopping_criteria": ()},
        {"num_beams": 2},
        {"num_beams": 2, "logits_processor": []},
        {"inputs": PROMPT, "assistant_model": MODEL},
        {"input_ids": PROMPT, "prompt_lookup_num_tokens": 2},
        {"custom_generate": "somewhere"},
        {"custom_generate": print, "stopping_criteria": object()},
        {"guidance_scale": 1.5},
        {"inputs": PROMPT, "prefill_chunk_size": 4},
    ],
)
def test_what_may_be_observed(arguments: dict[str, Any]) -> None:
    assert unobservable_decoding(call(**arguments)) is None


@pytest.mark.parametrize(
    ("arguments", "decoding"),
    [
        ({}, Decoding.STEPS),
        ({"num_beams": 2}, Decoding.BEAMS),
        ({"generation_config": GenerationConfig(num_beams=3)}, Decoding.BEAMS),
        ({"num_beams": 2, "assistant_model": MODEL}, Decoding.BEAMS),
        ({"assistant_model": MODEL}, Decoding.ASSISTED),
        ({"prompt_lookup_num_tokens": 2}, Decoding.ASSISTED),
        ({"assistant_early_exit": 2}, Decoding.ASSISTED),
        ({"use_mtp": True}, Decoding.ASSISTED),
        ({"custom_generate": print, "num_beams": 2}, Decoding.CUSTOM),
    ],
)
def test_how_a_call_decodes(arguments: dict[str, Any], decoding: Decoding) -> None:
    assert decoding_of(call(**arguments)) is decoding


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"assistant_model": MODEL}, "assisted decoding of a prompt that was not given as tokens"),
        ({"prefill_chunk_size": 4}, "chunked prefill of a prompt that was not given as tokens"),
        ({"constraints": [1], "num_beams": 2}, "constrained beam search"),
        ({"num_beams": 4, "num_beam_groups": 2}, "group beam search"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "contrastive decoding"),
        (
            {"num_beams": 2, "logits_processor": object()},
            "logits processors that are not a list",
        ),
        ({"stopping_criteria": object()}, "stopping criteria that are not a list"),
    ],
)
def test_what_cannot_be_observed_says_why(arguments: dict[str, Any], reason: str) -> None:
    assert unobservable_decoding(call(**arguments)) == reason


def test_the_length_of_a_prompt_of_tokens() -> None:
    assert call(inputs=PROMPT).prompt_length == call(input_ids=PROMPT).prompt_length == 12
    assert call().prompt_length is None
    assert call(input_ids=PROMPT, inputs_embeds=torch.zeros(1, 2, 4)).prompt_length is None


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_encoder_decoder_models_are_observed(family: str) -> None:
    assert unobservable_decoding(GenerateCall(tiny_model(family), {})) is None
