"""Finds what to observe in a model: its decoder and encoder, and their layers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn
from transformers import PretrainedConfig

from corevital.capture.cross_attention import attention_places

_DECIDE_ONLY: Final = frozenset({"BltPatcher"})
"""Models inside of a decoder that only decide how the prompt is divided."""
_COMPRESS_KEYS: Final = frozenset({"DeepseekV4CSACompressor", "DeepseekV4HCACompressor"})
"""Parts of attention that add keys of several tokens each."""
_STREAMS_IN_A_ROW: Final = frozenset({"ProphetNetDecoderLayer"})
"""Layers whose states are those of several streams, one behind the other."""


@dataclass(frozen=True, slots=True)
class DecoderLayers:
    """The modules of one model that are observed.

    ``layer_position`` maps ``id(layer)`` to the layer's position, of layers that return a state for
    every token; ``position_inside`` the ``id`` of every module inside a layer to that layer's. In
    an encoder-decoder, ``position_inside`` is about self-attention only, and ``cross_inside`` about
    cross-attention; ``attention_obstacle`` says why they cannot be told apart, where that is so.
    ``parts`` are those modules, kept because another could get the ``id`` of one that is gone.
    """

    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    layer_position: dict[int, int]
    position_inside: dict[int, int]
    parts: list[nn.Module]
    cross_inside: dict[int, int] = field(default_factory=dict)
    attention_obstacle: str | None = None

    @property
    def keys_are_tokens(self) -> bool:
        """Whether every key that a layer attends to is that of one token."""
        return not any(type(part).__name__ in _COMPRESS_KEYS for part in self.parts)

    def position_of_part(self, module: nn.Module) -> int | None:
        """The position of the layer that a module is in, and may have been put into since.

        Of an encoder-decoder, of what was there as self-attention only.
        """
        position = self.position_inside.get(id(module))
        if position is None and not self.cross_inside:
            position = next(
                (
                    place
                    for place, layer in enumerate(self.layers)
                    if any(part is module for part in layer.modules())
                ),
                None,
            )
            if position is not None:
                self.position_inside[id(module)] = position
                self.parts.append(module)
        return position


@dataclass(frozen=True, slots=True)
class EncoderLayers:
    """The encoder of an encoder-decoder; maps as in ``DecoderLayers``.

    ``layers`` is empty where none are found.
    """

    encoder: nn.Module
    layers: tuple[nn.Module, ...]
    layer_position: dict[int, int]
    position_inside: dict[int, int]
    parts: list[nn.Module]


def find_decoder_layers(model: nn.Module) -> DecoderLayers | None:
    """The layers of a causal language model or of a decoder, in order of execution.

    The classes that the model declares in ``_can_record_outputs["hidden_states"]`` come first,
    because that declaration is how ``transformers`` itself finds them; a model without it is
    searched for the module list whose length is ``num_hidden_layers``.

    Returns ``None`` when neither finds any layer.
    """
    if is_encoder_decoder(model):
        return _cross_attending_layers(model)
    for decoder in _decoders(model):
        layers = _layers(decoder, number_of_layers(decoder))
        if layers:
            return DecoderLayers(decoder, layers, *_places(layers))
    return None


def find_encoder_layers(model: nn.Module) -> EncoderLayers | None:
    """The encoder of an encoder-decoder and its layers; ``None`` for a decoder-only model."""
    if not is_encoder_decoder(model):
        return None
    get_encoder = getattr(model, "get_encoder", None)
    encoder: Any = get_encoder() if callable(get_encoder) else None
    if not isinstance(encoder, nn.Module) or encoder is model:
        return EncoderLayers(model, (), {}, {}, [])
    count = _encoder_layer_count(model, encoder)
    for candidate in (encoder, *encoder.children()):
        layers = _layers(candidate, count)
        if layers:
            return EncoderLayers(encoder, layers, *_places(layers))
    return EncoderLayers(encoder, (), {}, {}, [])


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether the model has an encoder whose output its decoder attends to."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _cross_attending_layers(model: nn.Module) -> DecoderLayers | None:
    # What is found elsewhere may be the encoder's.
    get_decoder = getattr(model, "get_decoder", None)
    whole: Any = get_decoder() if callable(get_decoder) else None
    if not isinstance(whole, nn.Module) or whole is model:
        return None
    for decoder in _decoders(whole):
        layers = _layers(decoder, number_of_layers(decoder) or number_of_layers(model))
        if layers:
            attention = attention_places(decoder, layers)
            position, _, parts = _places(layers)
            return DecoderLayers(
                decoder, layers, position, attention.own, parts, attention.cross, attention.reason
            )
    return None


def _encoder_layer_count(model: nn.Module, encoder: nn.Module) -> int | None:
    config: Any = getattr(encoder, "config", None) or getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        config = config.get_text_config(encoder=True)
    count = getattr(config, "num_hidden_layers", None)
    return count if isinstance(count, int) else None


def _places(
    layers: tuple[nn.Module, ...],
) -> tuple[dict[int, int], dict[int, int], list[nn.Module]]:
    """The position of every layer, and of every module inside one, and these modules."""
    inside = [(part, place) for place, layer in enumerate(layers) for part in layer.modules()]
    return (
        {
            id(layer): place
            for place, layer in enumerate(layers)
            if type(layer).__name__ not in _STREAMS_IN_A_ROW
        },
        {id(part): place for part, place in inside},
        [part for part, _ in inside],
    )


def _decoders(model: nn.Module) -> Iterator[nn.Module]:
    """What may be the decoder; the model itself, which has an output head besides, comes last."""
    text_config = _text_config(model)
    # Some output heads go by the name of decoder, and some models by their own name for the base.
    candidates = [_own_decoder(model), getattr(model, "base_model", None)]
    if text_config is not None:
        candidates += (
            child for child in model.children() if getattr(child, "config", None) is text_config
        )
    for candidate in candidates:
        if isinstance(candidate, nn.Module) and candidate is not model:
            inner = _own_decoder(candidate)
            # It may be a whole language model, with an output head too.
            if isinstance(inner, nn.Module) and inner is not candidate:
                yield inner
            yield candidate
    yield model


def _own_decoder(model: nn.Module) -> Any:
    get_decoder = getattr(model, "get_decoder", None)
    return get_decoder() if callable(get_decoder) else None


def _layers(stack: nn.Module, count: int | None) -> tuple[nn.Module, ...]:
    declared, listed = _declared_layers(stack), _layers_by_count(stack, count)
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
    return tuple(_modules_of(decoder, "", tuple(classes), tuple(names)))


def _modules_of(
    parent: nn.Module, path: str, kinds: tuple[type, ...], suffixes: tuple[str, ...]
) -> Iterator[nn.Module]:
    """Those inside of ``parent``, which is at ``path``, that are of some kind or so named."""
    for name, child in parent.named_children():
        own = f"{path}.{name}" if path else name
        if isinstance(child, kinds) or own.endswith(suffixes):
            yield child
        elif type(child).__name__ not in _DECIDE_ONLY:
            yield from _modules_of(child, own, kinds, suffixes)


def _layers_by_count(stack: nn.Module, count: int | None) -> tuple[nn.Module, ...]:
    if count is None:
        return ()
    kinds = {type(getattr(stack, "config", None)), type(_text_config(stack))}
    for parent in _of_configurations(stack, kinds):
        lists = [part for part in parent.children() if isinstance(part, nn.ModuleList)]
        fitting = [tuple(part) for part in lists if len(part) == count]
        # Of several side by side, each has a part of every layer.
        if len(fitting) == 1:
            return fitting[0]
    return ()


def _of_configurations(stack: nn.Module, kinds: set[type]) -> Iterator[nn.Module]:
    """The modules of ``stack`` without those that a configuration of another kind describes."""
    yield stack
    for child in stack.children():
        config = getattr(child, "config", None)
        if not isinstance(config, PretrainedConfig) or type(config) in kinds:
            yield from _of_configurations(child, kinds)


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
