"""What can be said of a key-value cache without looking into it."""

from __future__ import annotations

from typing import Any

from transformers.cache_utils import DynamicLayer


def only_appends(cache: Any) -> bool:
    """Whether the keys of one step stay, unchanged and in place, the first keys of the next.

    True for caches all of whose layers are plain dynamic ones; a sliding window forgets keys, a
    quantised cache alters them, and without a cache nothing is kept. Of an encoder-decoder's
    cache, it is the self-attention that counts.
    """
    own = getattr(cache, "self_attention_cache", cache)
    layers = getattr(own, "layers", None) or ()
    return len(layers) > 0 and all(type(layer) is DynamicLayer for layer in layers)


def keeps_cross_attention(cache: Any) -> bool:
    """Whether the keys of the encoder's positions are computed once and stay as they are."""
    return getattr(cache, "cross_attention_cache", None) is not None
