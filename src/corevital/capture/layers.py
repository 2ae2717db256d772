"""Finds what to observe in a model: its decoder, the decoder's layers, its output head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn


@dataclass(frozen=True, slots=True)
class DecoderLayers:
    """The modules of one model that are observed.

    ``layer_position`` maps ``id(layer)`` to the layer's position, ``position_inside`` the ``id`` of
    every module inside a layer to that layer's.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    layer_position: dict[int, int]
    position_inside: dict[int, int]


def find_decoder_layers(model: nn.Module) -> DecoderLayers | None:
    """The decoder layers of a causal language model, in order of execution.

    The classes that the model declares in ``_can_record_outputs["hidden_states"]`` come first,
    because that declaration is how ``transformers`` itself finds them; a model without it is
    searched for the module list whose length is ``num_hidden_layers``.

    Returns ``None`` when neither finds any layer.
    """
    decoder = _decoder(model)
    layers = _declared_layers(decoder) or _layers_by_count(decoder)
    if not layers:
        return None
    return DecoderLayers(
        decoder,
        layers,
        {id(layer): position for position, layer in enumerate(layers)},
        {id(module): place for place, layer in enumerate(layers) for module in layer.modules()},
    )


def _decoder(model: nn.Module) -> nn.Module:
    get_decoder = getattr(model, "get_decoder", None)
    decoder = get_decoder() if callable(get_decoder) else None
    if decoder is None or decoder is model:
        decoder = getattr(model, "base_model", None)
    return decoder if isinstance(decoder, nn.Module) else model


def _declared_layers(decoder: nn.Module) -> tuple[nn.Module, ...]:
    declared: Any = (getattr(decoder, "_can_record_outputs", None) or {}).get("hidden_states")
    specifications = declared if isinstance(declared, list) else [declared]
    classes: list[type] = []
    names: list[str] = []
    for specification in specifications:
        target = getattr(specification, "target_class", specification)
        name = getattr(specification, "class_name", None)
        if isinstance(target, type):
            classes.append(target)
        elif isinstance(target, str):
            names.append(target)
        if isinstance(name, str):
            names.append(name)
    return tuple(
        module
        for name, module in decoder.named_modules()
        if isinstance(module, tuple(classes)) or any(name.endswith(suffix) for suffix in names)
    )


def _layers_by_count(decoder: nn.Module) -> tuple[nn.Module, ...]:
    count = number_of_layers(decoder)
    if count is None:
        return ()
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return tuple(module)
    return ()


def number_of_layers(model: nn.Module) -> int | None:
    """``num_hidden_layers`` of the (text) configuration, ``None`` when it has none."""
    return decoder_size(model, "num_hidden_layers")


def decoder_size(model: nn.Module, name: str) -> int | None:
    """A whole number of the (text) configuration, ``None`` when it has none of that name."""
    config = getattr(model, "config", None)
    if hasattr(config, "get_text_config"):
        config = cast("Any", config).get_text_config(decoder=True)
    size = getattr(config, name, None)
    return size if isinstance(size, int) else None
