"""What can be said of a key-value cache without looking into it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any

from transformers.cache_utils import DynamicLayer, StaticLayer


class NewestKey(Enum):
    """Where among the keys that a row of attention may see the one of its own token is."""

    LAST = "the last"
    LAST_VISIBLE = "the last that the mask leaves visible"
    UNKNOWN = "cannot be told"


def only_appends(cache: Any) -> bool:
    """Whether the keys of one step stay, unchanged and in place, the first keys of the next.

    True for caches all of whose layers are plain dynamic ones; a sliding window forgets keys, a
    quantised cache alters them, and without a cache nothing is kept. Of an encoder-decoder's
    cache, it is the self-attention that counts.
    """
    return {*map(type, _layers(cache))} == {DynamicLayer}


def newest_key(cache: Any) -> NewestKey:
    """Where the newest key is.

    A cache of a fixed size has places behind it for keys still to come, which the mask hides. That
    of sparse attention may hide the newest key as well.
    """
    fixed = [layer for layer in _layers(cache) if isinstance(layer, StaticLayer)]
    if not fixed:
        return NewestKey.LAST
    sparse = any(hasattr(layer, "indexer_keys") for layer in fixed)
    return NewestKey.UNKNOWN if sparse else NewestKey.LAST_VISIBLE


def _layers(cache: Any) -> Sequence[Any]:
    own = getattr(cache, "self_attention_cache", cache)
    return getattr(own, "layers", None) or ()


def keeps_cross_attention(cache: Any) -> bool:
    """Whether the keys of the encoder's positions are computed once and stay as they are."""
    return getattr(cache, "cross_attention_cache", None) is not None
