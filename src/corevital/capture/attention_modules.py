"""Observes attention that is not looked up by name, where its module returns its weights."""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.compiler import is_dynamo_compiling

from corevital.capture.active import active_run
from corevital.capture.module_calls import ModuleCall
from corevital.capture.unobservable import Unobservable

_ALWAYS: Final = frozenset(
    {
        "BigBirdSelfAttention",
        "BloomAttention",
        "CodeGenAttention",
        "FalconAttention",
        "GPTJAttention",
        "GPTNeoSelfAttention",
        "GPTNeoXJapaneseAttention",
        "GitSelfAttention",
        "MegatronBertSelfAttention",
        "MptAttention",
        "RemBertSelfAttention",
        "RoFormerSelfAttention",
        "XGLMAttention",
    }
)
"""Classes that return their weights whenever they have them."""
_IF_ASKED: Final = frozenset(
    {
        "LEDDecoderAttention",
        "MvpAttention",
        "SpeechT5Attention",
        "TrOCRAttention",
        "XGLMAttention",
    }
)
"""Classes that always have their weights, and return them for ``output_attentions=True``."""
_MASKS_WHAT_IS_HIDDEN: Final = frozenset({"MptAttention"})
_ASKED_FOR: Final = "output_attentions"
_CALL: Final = "__call__"
_MASK: Final = "attention_mask"
_LEARNED_KEYS: Final = "attn_prompt"
_NO_WEIGHTS: Final = "the attention returns its weights only with output_attentions=True"
_NO_TOKENS: Final = "the attention has learned keys, which are no tokens"

_lock: Final = threading.Lock()
_observed: Final[set[type[nn.Module]]] = set()
_searched: Final[set[str]] = set()


def observe_attention_modules(layers: Iterable[nn.Module]) -> None:
    """Wrap the calls of such attention modules as come with these layers, each class once."""
    for home in {type(layer).__module__ for layer in layers} - _searched:
        with _lock:
            if home not in _searched:
                for kind in _attention_classes(home):
                    setattr(kind, _CALL, _observed_call(kind.__call__))
                    _observed.add(kind)
                _searched.add(home)


def restore_attention_modules() -> None:
    """Leave these classes as they were."""
    with _lock:
        for kind in _observed:
            delattr(kind, _CALL)
        _observed.clear()
        _searched.clear()


def _attention_classes(home: str) -> Iterator[type[nn.Module]]:
    """Those of a Python module of the library that return their weights."""
    if home.startswith("transformers.models."):
        for name in _ALWAYS | _IF_ASKED:
            kind: Any = getattr(sys.modules.get(home), name, None)
            if kind is not None and not _is_looked_up(kind.forward):
                yield kind


def _is_looked_up(forward: Callable[..., Any]) -> bool:
    """Whether the attention is, perhaps in another release, looked up by name."""
    return "ALL_ATTENTION_FUNCTIONS" in inspect.unwrap(forward).__code__.co_names


def _observed_call(call: ModuleCall) -> ModuleCall:
    @functools.wraps(call)
    def __call__(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = None if is_dynamo_compiling() else active_run.get()
        signal = None if run is None or type(self) not in _observed else run.signal_of(self)
        if run is None or signal is None:
            return call(self, *args, **kwargs)
        asks = _has_to_be_asked(self, kwargs)
        if asks:
            kwargs[_ASKED_FOR] = True
        output = call(self, *args, **kwargs)
        run.attention_module_returns(signal, self, args, kwargs, output)
        if asks and isinstance(output, tuple):
            output = (output[0], None, *output[2:])
        return output

    return __call__


def _has_to_be_asked(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    if type(module).__name__ not in _IF_ASKED or kwargs.get(_ASKED_FOR, True):
        return False
    # The application's hooks see what is given and returned as it would have been.
    return not module._forward_hooks and not module._forward_pre_hooks


class ModuleAttention:
    """Reads what such modules were given and returned.

    Layers are often given one mask, which is then read once.
    """

    def __init__(self) -> None:
        self._read: tuple[torch.Size, Tensor | None, Tensor] | None = None

    def weights_and_mask(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The weights ``[B, H, Q, K]``, and a mask as attention functions are given one.

        Raises:
            Unobservable: no weights are returned, or not all keys are tokens.
        """
        weights = output[1]
        if weights is None:
            raise Unobservable(_NO_WEIGHTS)
        if kwargs.get(_LEARNED_KEYS) is not None:
            raise Unobservable(_NO_TOKENS)
        # Counted from the first argument but self.
        place = _parameters(type(module).forward).index(_MASK) - 1
        mask: Tensor | None = kwargs.get(_MASK, args[place] if place < len(args) else None)
        return weights, self._registered(module, mask, weights)

    def _registered(self, module: nn.Module, mask: Tensor | None, weights: Tensor) -> Tensor | None:
        read = _reader(module, mask, weights)
        if read is None:
            return mask
        known = self._read
        if known is None or known[0] != weights.shape or known[1] is not mask:
            known = self._read = weights.shape, mask, read(mask)
        return known[2]


def _reader(
    module: nn.Module, mask: Tensor | None, weights: Tensor
) -> Callable[[Any], Tensor] | None:
    """What makes of the module's mask one that attention functions would be given, if need be."""
    if mask is not None and type(module).__name__ in _MASKS_WHAT_IS_HIDDEN:
        return torch.logical_not
    return functools.partial(_local, module, weights) if _is_local(module) else None


def _is_local(module: Any) -> bool:
    """Whether it hides what is far away, beyond what its mask hides."""
    if type(module).__name__ != "GPTNeoSelfAttention":
        return False
    local: bool = module.config.attention_layers[module.layer_id] == "local"
    return local


def _local(module: Any, weights: Tensor, mask: Tensor | None) -> Tensor:
    queries, keys = weights.shape[2:]
    near: Tensor = module.bias[:, :, keys - queries : keys, :keys]
    if mask is None:
        return near
    mask = mask[..., :keys]
    return torch.where(near, mask, torch.finfo(mask.dtype).min)


@functools.cache
def _parameters(forward: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(forward).parameters)
