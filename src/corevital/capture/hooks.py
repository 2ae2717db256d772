"""Forward hooks on a model while it generates; none is left behind afterwards.

They mark the begin and end of a forward pass, and observe the few decoder layers that
:mod:`corevital.capture.layer_calls` does not reach.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.modeling_layers import GradientCheckpointingLayer

from corevital.capture.active import active_run
from corevital.capture.layers import DecoderLayers


# The hooks are module-level functions without state, so that a model that is copied or pickled
# while they are installed stays copyable and picklable.
def _before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    run = None if torch.compiler.is_compiling() else active_run.get()
    if run is not None and run.model is module:
        run.forward_starts(args, kwargs)


def _after_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run = None if torch.compiler.is_compiling() else active_run.get()
    if run is not None:
        run.layer_returns(module, args, output)


def _after_decoder(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run = None if torch.compiler.is_compiling() else active_run.get()
    if run is not None:
        run.decoder_returns(output)


def _after_forward(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run = None if torch.compiler.is_compiling() else active_run.get()
    if run is not None and run.model is module:
        run.forward_returns(output)


@dataclass(slots=True)
class _Installation:
    users: int
    handles: list[RemovableHandle]


_installations: WeakKeyDictionary[nn.Module, _Installation] = WeakKeyDictionary()
_lock: Final = threading.Lock()


@contextmanager
def observed(model: nn.Module, layers: DecoderLayers | None) -> Iterator[None]:
    """Keep the hooks on ``model`` inside the block.

    Runs that overlap in several threads share one set of hooks: the modules' hook tables change
    only when the first starts and when the last ends, never while another one generates.
    """
    with _lock:
        installation = _installations.get(model)
        if installation is None:
            installation = _Installation(0, _install(model, layers))
            _installations[model] = installation
        installation.users += 1
    try:
        yield
    finally:
        with _lock:
            installation.users -= 1
            if installation.users == 0:
                del _installations[model]
                for handle in installation.handles:
                    handle.remove()


def _install(model: nn.Module, layers: DecoderLayers | None) -> list[RemovableHandle]:
    handles = [
        model.register_forward_pre_hook(_before_forward, with_kwargs=True),
        model.register_forward_hook(_after_forward),
    ]
    if layers is not None:
        handles += [
            layer.register_forward_hook(_after_layer)
            for layer in layers.layers
            if not isinstance(layer, GradientCheckpointingLayer)
        ]
        if layers.decoder is not model:
            handles.append(layers.decoder.register_forward_hook(_after_decoder))
    return handles
