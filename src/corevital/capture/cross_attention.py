"""Tells the self-attention of an encoder-decoder's decoder layers from their cross-attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

CROSS_NAMES: Final = frozenset(
    {
        "encoder_attn",
        "cross_attn",
        "crossattention",
        "cross_attention",
        "encoder_decoder_attention",
        "EncDecAttention",
    }
)
SELF_NAMES: Final = frozenset({"self_attn", "self_attention", "attention", "attn", "SelfAttention"})


@dataclass(frozen=True, slots=True)
class AttentionPlaces:
    """Which modules belong to which layer's attention, by ``id``.

    ``reason`` says why the two kinds cannot be told apart, where that is so; then nothing is known.
    """

    own: dict[int, int] = field(default_factory=dict)
    cross: dict[int, int] = field(default_factory=dict)
    reason: str | None = None


def attention_places(decoder: nn.Module, layers: Sequence[nn.Module]) -> AttentionPlaces:
    """Where the layers of ``decoder`` have self-attention, and where cross-attention.

    What the decoder declares in ``_can_record_outputs`` as ``attentions`` and ``cross_attentions``
    comes first, because that is how ``transformers`` itself tells them apart; a decoder without it
    is searched for the names that such modules go by.
    """
    declared: Any = getattr(decoder, "_can_record_outputs", None) or {}
    if "cross_attentions" in declared:
        cross = set(_recorded(decoder, declared["cross_attentions"]))
        own = set(_recorded(decoder, declared.get("attentions")))
        if own and own == cross:
            return AttentionPlaces(reason="self- and cross-attention are one")
        own -= cross
    else:
        named = [(name.rpartition(".")[2], module) for name, module in decoder.named_modules()]
        cross = {module for name, module in named if name in CROSS_NAMES}
        own = {module for name, module in named if name in SELF_NAMES}
    crossing = _inside(layers, cross)
    looking = {part: place for part, place in _inside(layers, own).items() if part not in crossing}
    if not crossing or not looking:
        return AttentionPlaces(reason="self- and cross-attention cannot be told apart")
    return AttentionPlaces(looking, crossing)


def _recorded(decoder: nn.Module, declared: Any) -> Iterator[nn.Module]:
    """The modules that a declaration means, as ``transformers`` reads it."""
    for specification in declared if isinstance(declared, list) else [declared]:
        target = getattr(specification, "target_class", specification)
        suffix = target if isinstance(target, str) else getattr(specification, "class_name", None)
        within = getattr(specification, "layer_name", None)
        for name, module in decoder.named_modules():
            of_class = isinstance(target, type) and isinstance(module, target)
            if not of_class and not (suffix is not None and name.endswith(suffix)):
                continue
            if within is None or f".{within.strip('.')}." in f".{name}.":
                yield module


def _inside(layers: Sequence[nn.Module], wanted: set[nn.Module]) -> dict[int, int]:
    """The layer of every module that is one of ``wanted`` or inside one."""
    return {
        id(part): place
        for place, layer in enumerate(layers)
        for module in layer.modules()
        if module in wanted
        for part in module.modules()
    }
