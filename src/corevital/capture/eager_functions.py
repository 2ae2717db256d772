"""Observes ``eager`` attention where it is not looked up but called by its name.

In ``transformers`` 4.57 an attention module calls the ``eager_attention_forward`` of its own Python
module; version 5 looks it up like any other backend, and nothing is to be done here.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Iterable
from types import ModuleType
from typing import Any, Final

from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from corevital.capture.active import active_run
from corevital.capture.attention_functions import EAGER_IS_LOOKED_UP, AttentionFunction

_NAME: Final = "eager_attention_forward"
_lock: Final = threading.Lock()
_originals: dict[ModuleType, AttentionFunction] = {}


def observe_eager_functions(layers: Iterable[nn.Module]) -> None:
    """Wrap the eager attention functions of the modules that define these layers, once each."""
    if EAGER_IS_LOOKED_UP:
        return
    for name in {type(module).__module__ for layer in layers for module in layer.modules()}:
        home = sys.modules.get(name)
        function = getattr(home, _NAME, None)
        if home is None or function is None:
            continue
        with _lock:
            if home not in _originals:
                _originals[home] = function
                setattr(home, _NAME, _observed(function))


def restore_eager_functions() -> None:
    """Put the original functions back."""
    with _lock:
        for home, function in _originals.items():
            setattr(home, _NAME, function)
        _originals.clear()


def _observed(function: AttentionFunction) -> AttentionFunction:
    @functools.wraps(function)
    def attention(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        run = None if is_dynamo_compiling() else active_run.get()
        called = function if run is None else run.observed_attention(function)
        return called(*args, **kwargs)

    return attention
