"""What a forward pass of a language model is given."""

from __future__ import annotations

from typing import Any

from torch import Tensor


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
    for given in (kwargs.get("input_ids"), kwargs.get("inputs_embeds"), *args[:1]):
        if isinstance(given, Tensor):
            return given.shape[0]
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
