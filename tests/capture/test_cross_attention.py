"""Self- and cross-attention of a decoder's layers are told apart, or not claimed to be known."""

from __future__ import annotations

import pytest
from torch import nn

from corevital.capture.cross_attention import attention_places
from corevital.capture.layers import find_decoder_layers, find_encoder_layers
from tests.capture.observe import observe
from tests.models import tiny_model
from tests.zoo.architectures import Architecture, in_this_release


def named(model: nn.Module, places: dict[int, int]) -> dict[str, int]:
    """The outermost of some modules by name, without those inside them."""
    names = {name: module for name, module in model.named_modules() if id(module) in places}
    inner = {name for name in names if name.rpartition(".")[0] in names}
    return {name: places[id(module)] for name, module in names.items() if name not in inner}


def test_as_the_model_declares_by_the_name_of_the_layer() -> None:
    model = tiny_model("bart")
    found = find_decoder_layers(model)
    assert found is not None
    layers = [f"model.decoder.layers.{at}" for at in range(4)]
    assert named(model, found.cross_inside) == {
        f"{layer}.encoder_attn": at for at, layer in enumerate(layers)
    }
    assert named(model, found.position_inside) == {
        f"{layer}.self_attn": at for at, layer in enumerate(layers)
    }


@in_this_release
@pytest.mark.parametrize(
    ("architecture", "cross", "own"),
    [
        # Declared by classes of their own, T5's around the attention itself.
        ("t5-T5ForConditionalGeneration", "decoder.block.0.layer.1", "decoder.block.0.layer.0"),
        (
            "encoder-decoder-EncoderDecoderModel",
            "decoder.bert.encoder.layer.0.crossattention.self",
            "decoder.bert.encoder.layer.0.attention.self",
        ),
        # Not declared, but named as usual.
        (
            "led-LEDForConditionalGeneration",
            "led.decoder.layers.0.encoder_attn",
            "led.decoder.layers.0.self_attn",
        ),
    ],
)
def test_as_other_models_declare_or_name_them(architecture: str, cross: str, own: str) -> None:
    model_type, _, class_name = architecture.rpartition("-")
    model = Architecture(model_type, class_name).build()
    found = find_decoder_layers(model)
    assert found is not None
    assert named(model, found.cross_inside)[cross] == 0
    assert named(model, found.position_inside)[own] == 0
    assert not set(found.cross_inside) & set(found.position_inside)


@in_this_release
def test_one_softmax_over_both_is_neither() -> None:
    architecture = Architecture("t5gemma2", "T5Gemma2ForConditionalGeneration")
    model = architecture.build()
    _, records = observe(model, **architecture.inputs(1), max_new_tokens=3, do_sample=False)
    (record,) = records
    assert record.attention is None
    assert record.cross_attention is None
    assert record.capture.attention.reason == "self- and cross-attention are one"
    assert record.capture.cross_attention is not None
    assert record.capture.cross_attention.reason == "self- and cross-attention are one"
    assert record.hidden is not None


def test_names_that_tell_nothing_are_no_ground_for_a_guess() -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(2, 2)
            self.second = nn.Linear(2, 2)

    decoder = nn.Sequential(Layer(), Layer())
    places = attention_places(decoder, list(decoder))
    assert places.reason == "self- and cross-attention cannot be told apart"
    assert not places.own
    assert not places.cross


@in_this_release
@pytest.mark.parametrize(
    ("model_type", "class_name", "decoder", "encoder"),
    [
        ("fsmt", "FSMTForConditionalGeneration", "model.decoder.layers", "model.encoder.layers"),
        (
            "speecht5",
            "SpeechT5ForSpeechToText",
            "speecht5.decoder.wrapped_decoder.layers",
            "speecht5.encoder.wrapped_encoder.layers",
        ),
        (
            "speech-encoder-decoder",
            "SpeechEncoderDecoderModel",
            "decoder.bert.encoder.layer",
            "encoder.encoder.layers",
        ),
    ],
)
def test_no_layer_of_the_encoder_is_taken_for_one_of_the_decoder(
    model_type: str, class_name: str, decoder: str, encoder: str
) -> None:
    model = Architecture(model_type, class_name).build()
    found, encoding = find_decoder_layers(model), find_encoder_layers(model)
    assert found is not None
    assert encoding is not None
    assert list(found.layers) == list(model.get_submodule(decoder).children())
    assert list(encoding.layers) == list(model.get_submodule(encoder).children())
