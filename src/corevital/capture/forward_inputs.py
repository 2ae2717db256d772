"""What a forward pass of a language model is given."""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

_BESIDE_THE_PAST: Final = frozenset(
    {
        "attention_mask",
        "input_ids",
        "inputs_embeds",
        "logits_to_keep",
        "output_attentions",
        "output_hidden_states",
        "past_key_values",
        "return_dict",
        "use_cache",
    }
)
"""Arguments that leave no doubt of how many positions a forward pass sees."""


def given_ids(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The token ids ``[B, Q]`` of a forward pass, ``None`` when it is given none."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    return ids if isinstance(ids, Tensor) else None


def decoder_ids(kwargs: dict[str, Any]) -> Tensor | None:
    """The token ids ``[B, Q]`` of an encoder-decoder's decoder, ``None`` when it is given none."""
    ids = kwargs.get("decoder_input_ids")
    return ids if isinstance(ids, Tensor) and ids.dim() == 2 else None


def given_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """How many sequences a forward pass is given, ``None`` where that cannot be told."""
    given = _given(args, kwargs)
    return None if given is None else given.shape[0]


def _given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Token ids ``[B, Q]`` or embeddings ``[B, Q, D]``."""
    for given in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(given, Tensor):
            return given
    return None


def cached_positions(kwargs: dict[str, Any]) -> int | Tensor:
    """How many positions the cache of a forward pass holds before it.

    A tensor where asking would mean waiting for a device.
    """
    cache = kwargs.get("past_key_values")
    if cache is None or not hasattr(cache, "get_seq_length"):
        return 0
    length = cache.get_seq_length()
    if isinstance(length, Tensor) and length.device.type != "cpu":
        return length.clone()  # the cache counts on in place
    return int(length)


def seen_positions(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    """How many positions a decoder sees in a forward pass, those in its cache too.

    ``None`` where that cannot be told without waiting for a device; or at all, because some other
    argument may say what came before, as the state of a model without attention does.
    """
    given = _given(args, kwargs)
    others = {name for name, value in kwargs.items() if value is not None} - _BESIDE_THE_PAST
    cache = kwargs.get("past_key_values")
    countable = cache is None or hasattr(cache, "get_seq_length")
    if given is None or given.dim() < 2 or args[1:] or others or not countable:
        return None
    cached = cached_positions(kwargs)
    return None if isinstance(cached, Tensor) else cached + given.shape[1]
