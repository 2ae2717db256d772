"""Loops that compute gradients, as guided decoding does: they are the application's alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import DynamicCache

from corevital import GenerationRecord
from tests.capture.observe import observe
from tests.models import GenerativeModel, tiny_model, tiny_prompt

STEPS = 5
LENGTH = {"max_new_tokens": STEPS, "min_new_tokens": STEPS}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {"family": "llama"},
    "llama with weights": {"family": "llama", "attn_implementation": "eager"},
    "sinks": {"family": "gpt_oss", "attn_implementation": "eager"},
    "encoder": {"family": "bart"},
}


def greedy_loop(model: Any, input_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """Greedy tokens; where gradients are on, that of their likelihood is left in the model."""
    given, others = "input_ids", {}
    if model.config.is_encoder_decoder:
        given, others = "decoder_input_ids", {"encoder_outputs": arguments["encoder_outputs"]}
    cache, newest, likelihood = None, input_ids, torch.zeros(())
    for _ in range(STEPS):
        output = model(**{given: newest}, **others, past_key_values=cache, use_cache=True)
        cache, logits = output.past_key_values, output.logits[:, -1]
        likelihood = likelihood + logits.log_softmax(-1).amax(-1).sum()
        newest = logits.argmax(-1, keepdim=True)
        input_ids = torch.cat((input_ids, newest), dim=1)
    if likelihood.requires_grad:
        likelihood.backward()
    return input_ids


def guided_loop(model: Any, input_ids: torch.Tensor, **arguments: Any) -> torch.Tensor:
    """The same with gradients, which ``generate`` has switched off."""
    with torch.enable_grad():
        return greedy_loop(model, input_ids, **arguments)


def gradients(model: GenerativeModel) -> list[torch.Tensor]:
    """The model's gradients, which are forgotten."""
    found = [each.grad for each in model.parameters() if each.grad is not None]
    model.zero_grad()
    return found


def columns(record: GenerationRecord) -> list[Any]:
    assert record.logits is not None
    assert record.hidden is not None
    assert record.attention is not None
    assert record.prompt is not None
    found = [
        record.logits.entropy,
        record.logits.surprisal,
        record.hidden.l2_norm,
        record.hidden.last_layer_cosine,
        record.attention.entropy_mean,
        record.attention.concentration_max,
        record.prompt.layer_transformation,
        record.prompt.surprisal,
    ]
    return [column for column in found if column is not None]


@pytest.mark.parametrize("name", MODELS)
def test_a_loop_with_gradients_has_the_same_ones_and_its_record(name: str) -> None:
    model = tiny_model(**MODELS[name])
    prompt = tiny_prompt().repeat(2, 1)
    tokens = model.generate(inputs=prompt, custom_generate=guided_loop, **LENGTH)
    expected = gradients(model)
    assert len(expected) > 0
    observed, records = observe(model, inputs=prompt, custom_generate=guided_loop, **LENGTH)
    assert torch.equal(observed, tokens)
    found = gradients(model)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    _, usual = observe(model, inputs=prompt, custom_generate=greedy_loop, **LENGTH)
    for record, like in zip(records, usual, strict=True):
        assert record.capture == like.capture
        for column, same in zip(columns(record), columns(like), strict=True):
            # With gradients, torch takes other ways through the model.
            np.testing.assert_allclose(column, same, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tried", [1, 2], ids=["one token", "tokens tried"])
@pytest.mark.parametrize("trained", ["", "layers.1.self_attn.k_proj"], ids=["all", "keys only"])
def test_what_a_loop_lets_go_of_for_its_gradients_is_gone(trained: str, tried: int) -> None:
    model = tiny_model("llama", num_hidden_layers=2)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trained in name)
    seen: list[StorageWeakRef] = []
    alive: list[bool] = []

    def note(module: Any, args: Any, output: Any) -> None:
        # What the product's gradient is computed from.
        seen.append(StorageWeakRef(args[0].untyped_storage()))

    def forgetting_loop(
        model: Any, input_ids: torch.Tensor, stopping_criteria: Any, **arguments: Any
    ) -> torch.Tensor:
        with torch.enable_grad():
            cache: Any = DynamicCache(config=model.config)
            given = input_ids
            for _ in range(STEPS + 1):
                output = model(input_ids=given, past_key_values=cache, use_cache=True)
                assert output.logits.requires_grad
                chosen = output.logits[:1, -1].topk(tried).indices
                for layer in cache.layers:
                    layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
                del output
                alive.append(not seen[-1].expired())
                if len(given) > 1:
                    input_ids = torch.cat((input_ids, given[:1]), dim=1)
                    stopping_criteria(input_ids, None)
                elif tried == 1:
                    input_ids = torch.cat((input_ids, chosen), dim=1)
                cache.batch_select_indices(torch.tensor([0]))
                cache.batch_repeat_interleave(tried)
                given = chosen.view(tried, 1)
        return input_ids

    keys: Any = model.get_submodule("model.layers.1.self_attn.k_proj")
    handle = keys.register_forward_hook(note)
    asked = {"custom_generate": forgetting_loop, **LENGTH}
    _, (record,) = observe(model, inputs=tiny_prompt(), **asked)
    handle.remove()
    assert record.capture.failures == 0
    assert record.observed
    assert alive == [False] * (STEPS + 1)
