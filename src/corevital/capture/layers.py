"""Finds what to observe in a model: its decoder, the decoder's layers, its output head."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
    for decoder in _decoders(model):
        layers = _layers(decoder)
        if layers:
            return DecoderLayers(
                decoder,
                layers,
                {id(layer): place for place, layer in enumerate(layers)},
                {id(part): place for place, layer in enumerate(layers) for part in layer.modules()},
            )
    return None


def _decoders(model: nn.Module) -> Iterator[nn.Module]:
    """What may be the decoder; the model itself, which has an output head besides, comes last."""
    get_decoder = getattr(model, "get_decoder", None)
    # Some output heads go by the name of decoder, and some models by their own name for the base.
    yield from _modules_but(model, get_decoder() if callable(get_decoder) else None)
    yield from _modules_but(model, getattr(model, "base_model", None))
    text_config = _text_config(model)
    for child in model.children():
        if text_config is not None and getattr(child, "config", None) is text_config:
            yield child
    yield model


def _modules_but(model: nn.Module, candidate: Any) -> Iterator[nn.Module]:
    if isinstance(candidate, nn.Module) and candidate is not model:
        yield candidate


def _layers(decoder: nn.Module) -> tuple[nn.Module, ...]:
    declared, listed = _declared_layers(decoder), _layers_by_count(decoder)
    wrapped = len(declared) == len(listed) and all(
        any(part is inner for part in outer.modules())
        for inner, outer in zip(declared, listed, strict=True)
    )
    # What is declared may be only a part of a layer, and its attention another.
    return listed if wrapped else declared or listed


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
    size = getattr(_text_config(model), name, None)
    return size if isinstance(size, int) else None


def _text_config(model: nn.Module) -> Any:
    config: Any = getattr(model, "config", None)
    return config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
