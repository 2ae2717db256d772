"""Models whose layers return something else than one stream of hidden states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from corevital import GenerationRecord
from tests.capture.observe import observe
from tests.models import GenerativeModel, tiny_prompt
from tests.zoo.architectures import COMPLETE, Architecture

TOKENS = 4
PROMPT = 12


def generated(model: GenerativeModel) -> tuple[Any, GenerationRecord]:
    """The outputs and the record of a short generation."""
    prompt = tiny_prompt(1, PROMPT).clamp(max=98)
    outputs, (record,) = observe(
        model,
        input_ids=prompt,
        max_new_tokens=TOKENS,
        min_new_tokens=TOKENS,
        do_sample=False,
        output_hidden_states=True,
        return_dict_in_generate=True,
    )
    assert record.capture.failures == 0
    return outputs, record


def norms(outputs: Any, layer: int) -> np.ndarray[Any, Any]:
    """L2 norm of each step's newest state after a layer, by the model's own outputs."""
    states = torch.stack([step[layer + 1][0, -1] for step in outputs.hidden_states])
    return torch.linalg.vector_norm(states.float(), dim=-1).numpy()


def test_layers_that_return_a_list() -> None:
    outputs, record = generated(Architecture("openai-gpt", "OpenAIGPTLMHeadModel").build())
    assert record.hidden is not None
    assert record.hidden.layers.tolist() == [0, 1]
    for layer in (0, 1):
        np.testing.assert_allclose(
            record.hidden.l2_norm[:, layer], norms(outputs, layer), rtol=1e-5
        )


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("deepseek_v4", "DeepseekV4ForCausalLM"),
        Architecture("gemma3n_text", "Gemma3nForCausalLM"),
        Architecture("qwen4_exp_text", "Qwen4ExpForCausalLM"),
        Architecture("xlnet", "XLNetLMHeadModel"),
    ],
    ids=str,
)
def test_of_layers_with_several_streams_only_what_the_decoder_returns(
    architecture: Architecture,
) -> None:
    _, record = generated(architecture.build_or_skip())
    assert record.capture.hidden.available
    assert record.hidden is not None
    assert len(record.hidden.layers) == 1
    assert np.isfinite(record.hidden.l2_norm).all()
    assert record.prompt.layer_transformation is None


def test_of_layers_that_are_run_through_several_times_the_last_time_counts() -> None:
    """The layers of two stacks take turns, and each stack is given both of their outputs."""
    model: Any = Architecture("hrm_text", "HrmTextForCausalLM").build_or_skip()
    layers = [*model.model.L_module.layers, *model.model.H_module.layers]
    calls: list[tuple[int, torch.Tensor, torch.Tensor]] = []
    for place, layer in enumerate(layers):
        layer.register_forward_hook(
            lambda _, args, output, place=place: calls.append((place, args[0], output))
        )
    _, record = generated(model)
    assert record.hidden is not None
    of_a_token = len(calls) // TOKENS
    assert of_a_token > len(layers)
    last = {place: (given, states) for place, given, states in calls[:of_a_token]}
    newest = {place: states[0, -1] for place, _, states in calls[-of_a_token:]}
    transformation = record.prompt.layer_transformation
    assert transformation is not None
    # What is recorded of the last layer is what the decoder returns.
    for place in range(len(layers) - 1):
        given, states = last[place]
        expected = 1 - torch.cosine_similarity(given, states, dim=-1).mean().item()
        assert transformation[place] == pytest.approx(expected, abs=1e-5)
        norm = newest[place].norm().item()
        assert record.hidden.l2_norm[-1, place] == pytest.approx(norm, rel=1e-5)


def test_a_decoder_that_projects_to_another_width() -> None:
    config = OPTConfig(
        vocab_size=99,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
    )
    torch.manual_seed(0)
    outputs, record = generated(OPTForCausalLM(config).eval())
    assert record.hidden is not None
    assert record.hidden.layers.tolist() == [0, 1, 2]
    np.testing.assert_allclose(record.hidden.l2_norm[:, 0], norms(outputs, 0), rtol=1e-5)


@pytest.mark.skipif(not COMPLETE, reason="transformers 4.57 cannot generate with this model itself")
def test_layers_that_see_more_than_the_prompt() -> None:
    model = Architecture("cpmant", "CpmAntForCausalLM").build_or_skip()
    positions = PROMPT + model.config.prompt_length
    _, record = generated(model)
    expected = f"the layers see {positions} positions for {PROMPT} prompt tokens"
    assert record.capture.prompt.reason == expected
    assert record.prompt.layer_transformation is None
    assert record.hidden is not None
    assert record.hidden.layers.tolist() == [0, 1]


def test_attention_with_a_position_bias() -> None:
    architecture = Architecture("inkling_text", "InklingForCausalLM")
    _, record = generated(architecture.build_or_skip())
    eager = architecture.build_or_skip()
    eager.set_attn_implementation("eager")
    # There the backend gives the weights, and nothing has to be known of a bias.
    _, expected = generated(eager)
    assert record.attention is not None
    assert expected.attention is not None
    for name in ("entropy_mean", "concentration_max"):
        np.testing.assert_allclose(
            getattr(record.attention, name), getattr(expected.attention, name), rtol=1e-3, atol=1e-4
        )
    assert record.prompt.basin is not None
    assert expected.prompt.basin is not None
    np.testing.assert_allclose(record.prompt.basin, expected.prompt.basin, rtol=1e-3)


def test_layers_that_see_only_the_newest_token_of_a_prompt() -> None:
    model = Architecture("gemma4_text", "Gemma4ForCausalLM").build_or_skip()
    _, (record,) = observe(model, input_ids=tiny_prompt(1, PROMPT).clamp(max=98), max_new_tokens=2)
    assert record.capture.failures == 0
    assert record.capture.prompt.available
    basin, transformation = record.prompt.basin, record.prompt.layer_transformation
    assert basin is not None
    assert transformation is not None
    assert np.isfinite(basin).all(-1).tolist() == [True, True, False, False]
    assert np.isfinite(transformation).tolist() == [True, True, False, False]


def test_a_prompt_of_which_nothing_is_seen_is_not_captured() -> None:
    _, record = generated(Architecture("reformer", "ReformerModelWithLMHead").build())
    assert not record.capture.prompt.available
    assert record.capture.prompt.reason == "nothing was seen in the forward pass"
