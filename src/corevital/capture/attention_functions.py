"""Wraps the attention functions that models look up by name, without changing the backend.

Every model with ``ALL_ATTENTION_FUNCTIONS`` asks it for its attention function at each forward
pass. ``transformers`` 5 asks through ``get_interface``, which also serves ``eager``; 4.57 indexes
the mapping, for every backend but ``eager``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor
from torch.compiler import is_dynamo_compiling
from transformers.modeling_utils import AttentionInterface

from corevital.capture.active import active_run

AttentionFunction = Callable[..., tuple[Tensor, Tensor | None]]
AttentionLookup = Callable[..., AttentionFunction]

EAGER_IS_LOOKED_UP: Final = hasattr(AttentionInterface, "get_interface")
LOOKUP: Final = "get_interface" if EAGER_IS_LOOKED_UP else "__getitem__"
"""Name of the method of ``AttentionInterface`` through which models look functions up."""


def observed_lookup(lookup: AttentionLookup) -> AttentionLookup:
    """``lookup`` itself, whose result is observed while a run is active."""

    @functools.wraps(lookup)
    def get(self: AttentionInterface, *args: Any, **kwargs: Any) -> AttentionFunction:
        run = None if is_dynamo_compiling() else active_run.get()
        if run is None:
            return lookup(self, *args, **kwargs)
        known = run.known_attention
        if known is not None and known[0] is self and known[1] == args and not kwargs:
            return known[2]
        return run.looked_up_attention(lookup, self, args, kwargs)

    return get
