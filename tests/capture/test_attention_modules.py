"""Attention that its module computes itself is that of the library's own outputs."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bloom.modeling_bloom import BloomAttention
from transformers.models.gptj.modeling_gptj import GPTJAttention

from corevital import GenerationRecord
from corevital.capture.attention_modules import (
    ModuleAttention,
    observe_attention_modules,
    restore_attention_modules,
)
from corevital.record import AttentionColumns, Captured
from tests.capture.loops import contrasting, of_everything, of_the_newest
from tests.capture.observe import everything_equal, observe, observing
from tests.capture.recomputation import row_statistics
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.zoo.architectures import Architecture

TOKENS = 12
DECODERS = [
    Architecture("big_bird", "BigBirdForCausalLM"),
    Architecture("bloom", "BloomForCausalLM"),
    Architecture("codegen", "CodeGenForCausalLM"),
    Architecture("git", "GitForCausalLM"),
    Architecture("gpt_neo", "GPTNeoForCausalLM"),
    Architecture("gpt_neox_japanese", "GPTNeoXJapaneseForCausalLM"),
    Architecture("gptj", "GPTJForCausalLM"),
    Architecture("megatron-bert", "MegatronBertForCausalLM"),
    Architecture("mpt", "MptForCausalLM"),
    Architecture("mvp", "MvpForCausalLM"),
    Architecture("rembert", "RemBertForCausalLM"),
    Architecture("roformer", "RoFormerForCausalLM"),
    Architecture("trocr", "TrOCRForCausalLM"),
    Architecture("xglm", "XGLMForCausalLM"),
]
ENCODER_DECODERS = [
    Architecture("mvp", "MvpForConditionalGeneration"),
    Architecture("led", "LEDForConditionalGeneration"),
    Architecture("speecht5", "SpeechT5ForSpeechToText"),
]
NO_TOKENS = "the attention has learned keys, which are no tokens"
IF_ASKED = "the attention returns its weights only with output_attentions=True"


def padded(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Two prompts, where they are of tokens the second with padding in front."""
    inputs = architecture.inputs(2)
    if "input_ids" in inputs:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        inputs["attention_mask"][1, :3] = 0
    return inputs


def generated(
    model: GenerativeModel,
    inputs: dict[str, torch.Tensor],
    settings: dict[str, Any] | None = None,
    **asked: Any,
) -> tuple[Any, list[GenerationRecord]]:
    """The library's own outputs, attentions among them, and the records of the same tokens."""
    greedy: Any = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    arguments: Any = {"pad_token_id": 0, **greedy, **inputs, **asked}
    tokens, records = observe(model, settings, **arguments)
    plain: Any = model.generate(**arguments)
    outputs: Any = model.generate(**arguments, output_attentions=True, return_dict_in_generate=True)
    assert torch.equal(tokens, plain)
    assert torch.equal(tokens, outputs.sequences)
    assert all(record.capture.failures == 0 for record in records)
    return outputs, records


def assert_rows_equal(columns: AttentionColumns | None, attentions: Any, row: int) -> None:
    """``attentions`` are by step and layer, ``[B, H, Q, K]``."""
    assert columns is not None
    assert columns.layers.tolist() == list(range(len(attentions[0])))
    for step, layers in enumerate(attentions):
        for layer, weights in enumerate(layers):
            rows = weights[row, :, -1].double().numpy()
            # Of so small a model, only what is hidden has no weight.
            for name, expected in row_statistics(rows[:, (rows > 0).any(0)]).items():
                observed = getattr(columns, name)[step, layer]
                np.testing.assert_allclose(observed, expected, atol=1e-4, err_msg=name)


def assert_own_token_equals(columns: AttentionColumns | None, attentions: Any, row: int) -> None:
    """The last key with any weight is that of the newest token."""
    assert columns is not None
    assert columns.previous_token_weight is not None
    layers, values = columns.previous_token_weight.layers, columns.previous_token_weight.values
    for step, weights in enumerate(attentions):
        for place, layer in enumerate(layers):
            rows = weights[layer][row, :, -1]
            newest = int(rows.any(0).nonzero().max())
            np.testing.assert_allclose(values[step, place], rows[:, newest], atol=1e-3)


def assert_attention_equals(records: list[GenerationRecord], attentions: Any) -> None:
    """Of the decoder's own tokens, of every sequence."""
    for row, record in enumerate(records):
        assert_rows_equal(record.attention, attentions, row)
        assert_own_token_equals(record.attention, attentions, row)


@pytest.mark.parametrize("architecture", DECODERS, ids=str)
def test_the_attention_of_a_decoder(architecture: Architecture) -> None:
    outputs, records = generated(architecture.build_or_skip(), padded(architecture))
    assert_attention_equals(records, outputs.attentions)


@pytest.mark.parametrize("family", ["bloom", "gptj", "codegen"])
def test_a_cache_of_fixed_size(family: str) -> None:
    (architecture,) = (each for each in DECODERS if each.model_type == family)
    outputs, records = generated(
        architecture.build(), padded(architecture), cache_implementation="static"
    )
    assert outputs.attentions[0][0].shape[-1] > outputs.attentions[0][0].shape[-2]
    assert_attention_equals(records, outputs.attentions)
    _, expected = generated(architecture.build(), padded(architecture))
    for record, other in zip(records, expected, strict=True):
        for name in ("surprisal", "layer_transformation", "basin"):
            np.testing.assert_allclose(
                getattr(record.prompt, name), getattr(other.prompt, name), rtol=1e-3
            )


@pytest.mark.parametrize("architecture", ENCODER_DECODERS, ids=str)
def test_both_attentions_of_an_encoder_decoder(architecture: Architecture) -> None:
    outputs, records = generated(architecture.build_or_skip(), padded(architecture))
    assert_attention_equals(records, outputs.decoder_attentions)
    for row, record in enumerate(records):
        assert_rows_equal(record.cross_attention, outputs.cross_attentions, row)


@pytest.mark.parametrize("class_name", ["MvpForConditionalGeneration", "SpeechT5ForSpeechToText"])
def test_the_attention_of_an_encoder(class_name: str) -> None:
    (architecture,) = (each for each in ENCODER_DECODERS if each.class_name == class_name)
    outputs, records = generated(architecture.build_or_skip(), architecture.inputs(2))
    for row, record in enumerate(records):
        assert record.encoder is not None
        assert record.encoder.attention is not None
        for layer, weights in enumerate(outputs.encoder_attentions):
            by_query = [
                row_statistics(rows) for rows in weights[row].double().numpy().swapaxes(0, 1)
            ]
            expected = np.mean([query["entropy_mean"] for query in by_query])
            observed = record.encoder.attention.entropy_mean[layer]
            np.testing.assert_allclose(observed, expected, atol=1e-4)


@pytest.mark.parametrize("alibi", [False, True])
def test_falcon_where_it_computes_weights(*, alibi: bool) -> None:
    model = tiny_model("falcon", alibi=alibi, attn_implementation="eager")
    mask = torch.ones(2, 12, dtype=torch.long)
    mask[1, :3] = 0
    outputs, records = generated(model, {"input_ids": tiny_prompt(2), "attention_mask": mask})
    assert_attention_equals(records, outputs.attentions)


def test_falcon_where_it_computes_none() -> None:
    model = tiny_model("falcon", attn_implementation="sdpa")
    _, (record,) = observe(model, input_ids=tiny_prompt(1), do_sample=False, max_new_tokens=4)
    assert record.attention is None
    assert record.capture.attention.reason == IF_ASKED


def test_the_attention_of_the_prompt() -> None:
    architecture = Architecture("bloom", "BloomForCausalLM")
    outputs, (record, _) = generated(architecture.build(), architecture.inputs(2))
    assert record.prompt is not None
    assert record.prompt.basin is not None
    for layer, weights in enumerate(outputs.attentions[0]):
        columns = weights[0].sum(-2).double().numpy()
        basin = columns[:, 2:4].sum(-1) / (columns[:, :2].sum(-1) + columns[:, 4:].sum(-1))
        np.testing.assert_allclose(record.prompt.basin[layer], basin, atol=1e-4)


def test_a_summary_has_the_last_layer_only() -> None:
    architecture = Architecture("gptj", "GPTJForCausalLM")
    outputs, (record, _) = generated(
        architecture.build(), architecture.inputs(2), {"capture": "summary"}
    )
    assert record.attention is not None
    assert record.attention.layers.tolist() == [1]
    rows = outputs.attentions[-1][1][0, :, -1].double().numpy()
    expected = row_statistics(rows)["entropy_mean"]
    np.testing.assert_allclose(record.attention.entropy_mean[-1, 0], expected, atol=1e-4)


def test_weights_that_are_asked_for_are_the_application_s_as_before() -> None:
    architecture = Architecture("mvp", "MvpForConditionalGeneration")
    model = architecture.build()
    for asked in (False, True):
        arguments: Any = {
            **architecture.inputs(2),
            "do_sample": False,
            "max_new_tokens": TOKENS,
            "output_attentions": asked,
            "return_dict_in_generate": True,
        }
        outputs, records = observe(model, **arguments)
        assert everything_equal(outputs, model.generate(**arguments))
        assert all(record.attention is not None for record in records)


class Spy(nn.Module):
    """Sees what an attention module is asked, and what it returns to its layer."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.asked: list[bool] = []
        self.returned: list[Any] = []
        inner_forward: Any = inner.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.asked.append(kwargs["output_attentions"])
            return inner_forward(*args, **kwargs)

        inner.forward = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.inner(*args, **kwargs)
        self.returned.append(output[1])
        return output


def test_weights_that_were_not_asked_for_do_not_reach_the_layer() -> None:
    architecture = Architecture("mvp", "MvpForConditionalGeneration")
    model: Any = architecture.build()
    layer = model.get_decoder().layers[0]
    layer.self_attn = Spy(layer.self_attn)
    _, (record, _) = observe(
        model, **architecture.inputs(2), do_sample=False, max_new_tokens=TOKENS
    )
    assert record.attention is not None
    assert layer.self_attn.asked == [True] * record.steps
    assert layer.self_attn.returned == [None] * record.steps


def test_a_module_is_not_asked_where_another_has_refused() -> None:
    architecture = Architecture("mvp", "MvpForConditionalGeneration")
    model: Any = architecture.build()
    first, second = model.get_decoder().layers
    second.self_attn = Spy(second.self_attn)
    with first.self_attn.register_forward_hook(lambda *_: None):
        _, (record, _) = observe(
            model, **architecture.inputs(2), do_sample=False, max_new_tokens=TOKENS
        )
    assert record.attention is None
    assert second.self_attn.asked == [False] * record.steps


def test_a_module_is_not_asked_in_a_forward_pass_of_no_token() -> None:
    architecture = Architecture("mvp", "MvpForCausalLM")
    model: Any = architecture.build()
    layer = model.get_decoder().layers[0]
    layer.self_attn = Spy(layer.self_attn)
    _, (record, _) = observe(
        model,
        **architecture.inputs(2),
        max_new_tokens=4,
        custom_generate=contrasting(of_everything, of_the_newest, steps=4),
    )
    assert record.attention is not None
    assert layer.self_attn.asked == [True, False] * 4


@pytest.mark.parametrize(
    ("module", "signal"),
    [
        ("model.decoder.layers.0.self_attn", "attention"),
        ("model.decoder.layers.0.encoder_attn", "cross_attention"),
        ("model.encoder.layers.0.self_attn", "encoder_attention"),
    ],
)
def test_a_hook_of_the_application_sees_what_it_would_have_seen(module: str, signal: str) -> None:
    """So its module is not asked for weights, and only what that would have shown is missing."""
    architecture = Architecture("mvp", "MvpForConditionalGeneration")
    model: Any = architecture.build()
    seen: list[Any] = []

    def hook(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.append((kwargs["output_attentions"], output[1]))

    with model.get_submodule(module).register_forward_hook(hook, with_kwargs=True):
        _, (record, _) = observe(
            model, **architecture.inputs(2), do_sample=False, max_new_tokens=TOKENS
        )
    assert seen == [(False, None)] * (1 if "encoder.layers" in module else record.steps)
    for each in ("attention", "cross_attention", "encoder_attention"):
        reason = IF_ASKED if each == signal else None
        assert getattr(record.capture, each) == Captured(reason is None, reason)


def test_a_subclass_of_the_application_s_own_is_left_alone() -> None:
    """What it returns may be anything."""

    def misleading(self: Any, *args: Any, **kwargs: Any) -> Any:
        output, weights = library.forward(self, *args, **kwargs)
        return output, torch.ones_like(weights)

    library: Any = GPTJAttention
    own = type("Own", (GPTJAttention,), {"forward": misleading})
    model: Any = Architecture("gptj", "GPTJForCausalLM").build()
    for layer in model.transformer.h:
        layer.attn.__class__ = own
    prompt = tiny_prompt(1).clamp(max=90)
    of_library = Architecture("gptj", "GPTJForCausalLM").build()
    with observing() as records:
        for each in (of_library, model):
            each.generate(prompt, do_sample=False, max_new_tokens=4)
    assert records[0].attention is not None
    assert records[1].attention is None
    assert records[1].capture.failures == 0


def test_keys_that_are_no_tokens() -> None:
    """Prompt tuning of MVP puts them in front."""
    architecture = Architecture("mvp", "MvpForConditionalGeneration")
    model: Any = architecture.build()
    model.config.use_prompt = True
    tuned = type(model)(model.config).eval()
    _, (record, _) = observe(
        tuned, **architecture.inputs(2), do_sample=False, max_new_tokens=TOKENS
    )
    refused = Captured(available=False, reason=NO_TOKENS)
    assert record.capture.attention == record.capture.cross_attention == refused
    # The newest release has lost the encoder's, whose attention is to tokens alone then.
    assert (record.capture.encoder_attention == refused) == tuned.get_encoder().use_prompt
    assert record.capture.failures == 0


def test_uninstrumented_the_classes_are_as_they_were() -> None:
    model = Architecture("bloom", "BloomForCausalLM").build()
    with observing():
        model.generate(tiny_prompt(1).clamp(max=90), do_sample=False, max_new_tokens=2)
        assert "__call__" in vars(BloomAttention)
    assert "__call__" not in vars(BloomAttention)


def test_a_class_that_looks_its_attention_up_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As another release's may, and then its attention is observed there."""

    def looking_up(self: Any) -> Any:
        return ALL_ATTENTION_FUNCTIONS.get_interface("eager", self)

    def computing(self: Any) -> Any:
        return self.query @ self.key

    home = ModuleType("transformers.models.later.modeling_later")
    monkeypatch.setitem(sys.modules, home.__name__, home)
    layer = type("Layer", (nn.Module,), {"__module__": home.__name__})
    kinds: list[Any] = []
    for name, forward in (("BloomAttention", looking_up), ("GPTJAttention", computing)):
        kinds.append(type(name, (nn.Module,), {"forward": forward}))
        setattr(home, name, kinds[-1])
    try:
        observe_attention_modules([layer()])
        assert ["__call__" in vars(kind) for kind in kinds] == [False, True]
    finally:
        restore_attention_modules()


@pytest.mark.parametrize("keys", [[9, 10], [10, 9]])
def test_a_window_is_that_of_the_keys_there_are(keys: list[int]) -> None:
    """Without a mask as well."""
    model: Any = Architecture("gpt_neo", "GPTNeoForCausalLM").build()
    local, reader = model.transformer.h[1].attn.attention, ModuleAttention()
    for count in keys:
        weights = torch.ones(1, 4, 1, count)
        near = [False] * (count - 8) + [True] * 8
        _, mask = reader.weights_and_mask(local, (), {"attention_mask": None}, (None, weights))
        assert mask is not None
        assert mask.flatten().tolist() == near
        longer = {"attention_mask": torch.zeros(1, 1, 1, count + 3)}
        _, mask = reader.weights_and_mask(local, (), longer, (None, weights))
        assert mask is not None
        assert (mask == 0).flatten().tolist() == near
