"""The decoder layers of a model are found, by declaration or by count."""

from __future__ import annotations

import weakref

import pytest
from torch import nn
from transformers import CLIPVisionConfig, LlamaConfig, PretrainedConfig

from corevital.capture.layers import find_decoder_layers
from tests.models import FAMILIES, LAYERS, tiny_model
from tests.zoo.architectures import Architecture

ENCODER_DECODER = ["t5", "bart", "marian", "whisper"]
DECODER_ONLY = [family for family in FAMILIES if family not in ENCODER_DECODER]


@pytest.mark.parametrize("family", DECODER_ONLY)
def test_every_family_has_its_layers(family: str) -> None:
    model = tiny_model(family)
    found = find_decoder_layers(model)
    assert found is not None
    expected = next(
        module
        for module in model.modules()
        if isinstance(module, nn.ModuleList) and len(module) == LAYERS
    )
    assert list(found.layers) == list(expected)


def test_modules_inside_a_layer_belong_to_it() -> None:
    model = tiny_model("llama")
    found = find_decoder_layers(model)
    assert found is not None
    for position, layer in enumerate(found.layers):
        assert all(found.position_inside[id(module)] == position for module in layer.modules())
        assert found.layer_position[id(layer)] == position


def test_layers_that_wrap_what_is_declared() -> None:
    model = Architecture("zamba", "ZambaForCausalLM").build_or_skip()
    found = find_decoder_layers(model)
    assert found is not None
    assert list(found.layers) == list(model.get_submodule("model.layers").children())
    attention = [
        place
        for place, layer in enumerate(found.layers)
        for module in layer.modules()
        if type(module).__name__ == "ZambaAttention"
    ]
    assert attention == [1, 3]


@pytest.mark.parametrize(
    "architecture",
    [
        # Its get_decoder gives the output head.
        Architecture("modernbert-decoder", "ModernBertDecoderForCausalLM"),
        # These have a base model by a name that they do not declare.
        Architecture("llama4_text", "Llama4ForCausalLM"),
        Architecture("mllama", "MllamaForCausalLM"),
    ],
    ids=str,
)
def test_the_decoder_is_what_the_layers_are_in(architecture: Architecture) -> None:
    model = architecture.build_or_skip()
    found = find_decoder_layers(model)
    assert found is not None
    assert found.decoder is model.get_submodule("model")
    assert list(found.layers) == list(model.get_submodule("model.layers").children())


def test_the_decoder_inside_of_a_language_model_inside_of_a_model() -> None:
    model = Architecture("granite_speech", "GraniteSpeechForConditionalGeneration").build_or_skip()
    found = find_decoder_layers(model)
    assert found is not None
    assert type(found.decoder).__name__ == "GraniteModel"


def test_a_model_without_layers_has_none() -> None:
    assert find_decoder_layers(nn.Linear(2, 2)) is None


def test_a_model_whose_layers_are_no_modules_has_none() -> None:
    """All attentions are in one list, what follows each of them in others."""
    assert find_decoder_layers(Architecture("xlm", "XLMWithLMHeadModel").build()) is None


def test_a_model_that_divides_the_prompt_is_no_part_of_the_decoder() -> None:
    model = Architecture("blt", "BltForCausalLM").build()
    stacks = ("local_encoder", "global_transformer", "local_decoder")
    expected = [
        layer for name in stacks for layer in model.get_submodule(f"model.{name}.layers").children()
    ]
    found = find_decoder_layers(model)
    assert found is not None
    assert list(found.layers) == expected


def test_states_of_several_streams_in_a_row_are_none_of_the_tokens() -> None:
    found = find_decoder_layers(Architecture("prophetnet", "ProphetNetForCausalLM").build())
    assert found is not None
    assert found.layers
    assert not found.layer_position


@pytest.mark.parametrize(
    ("architecture", "keys_are_tokens"),
    [
        (Architecture("deepseek_v3", "DeepseekV3ForCausalLM"), True),
        (Architecture("deepseek_v4", "DeepseekV4ForCausalLM"), False),
    ],
    ids=str,
)
def test_keys_that_are_of_several_tokens(
    architecture: Architecture, *, keys_are_tokens: bool
) -> None:
    found = find_decoder_layers(architecture.build_or_skip())
    assert found is not None
    assert found.keys_are_tokens == keys_are_tokens


class Stack(nn.Module):
    """Two layers, and what comes before them."""

    def __init__(self, config: PretrainedConfig, before: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.before = before
        self.layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(2))


def test_layers_of_images_are_none_of_the_text() -> None:
    """As many as the decoder has, and in front of them."""
    images = Stack(CLIPVisionConfig(num_hidden_layers=2))
    text = Stack(LlamaConfig(num_hidden_layers=2), before=images)
    found = find_decoder_layers(text)
    assert found is not None
    assert list(found.layers) == list(text.layers)
    git = find_decoder_layers(Architecture("git", "GitForCausalLM").build())
    assert git is not None
    assert {type(layer).__name__ for layer in git.layers} == {"GitLayer"}


def test_a_module_that_is_put_into_a_layer_later_belongs_to_it() -> None:
    text, layer = Stack(LlamaConfig(num_hidden_layers=2)), nn.Sequential(nn.Linear(2, 2))
    text.layers[1] = layer
    found = find_decoder_layers(text)
    assert found is not None
    later = nn.Linear(2, 2)
    assert found.position_of_part(later) is None
    layer[0] = later
    assert found.position_of_part(later) == 1


def test_no_module_gets_the_identity_of_one_that_is_gone() -> None:
    """``id`` is free for another as soon as a module is."""
    text, layer = Stack(LlamaConfig(num_hidden_layers=2)), nn.Sequential(nn.Linear(2, 2))
    text.layers[1] = layer
    found = find_decoder_layers(text)
    gone = weakref.ref(layer[0])
    layer[0] = nn.Linear(2, 2)
    assert found is not None
    assert gone() is not None
