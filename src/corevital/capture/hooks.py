"""Forward hooks for the few modules that :mod:`corevital.capture.module_calls` does not reach."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn
from torch.compiler import is_dynamo_compiling
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from corevital.capture.active import active_run
from corevital.capture.layers import DecoderLayers, EncoderLayers


# The hooks are module-level functions without state, so that a model that is copied or pickled
# while they are installed stays copyable and picklable.
def _after_layer(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run = None if is_dynamo_compiling() else active_run.get()
    if run is not None:
        run.layer_returns(module, args, output)


def _after_decoder(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run = None if is_dynamo_compiling() else active_run.get()
    if run is not None:
        run.decoder_returns(output)


def _before_encoder(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    run = None if is_dynamo_compiling() else active_run.get()
    if run is not None:
        run.encoder_starts(module, args, kwargs)


def _after_encoder(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    run = None if is_dynamo_compiling() else active_run.get()
    if run is not None:
        run.encoder_returns(module, output)


@contextmanager
def hooked(layers: DecoderLayers | None, encoder: EncoderLayers | None = None) -> Iterator[None]:
    """Keep the hooks on such layers, and on such a decoder and encoder, inside the block."""
    with ExitStack() as installed:
        if encoder is not None:
            for layer in encoder.layers:
                if not isinstance(layer, GradientCheckpointingLayer):
                    installed.callback(layer.register_forward_hook(_after_layer).remove)
            if not isinstance(encoder.encoder, PreTrainedModel):
                before = encoder.encoder.register_forward_pre_hook(
                    _before_encoder, with_kwargs=True
                )
                installed.callback(before.remove)
                installed.callback(encoder.encoder.register_forward_hook(_after_encoder).remove)
        if layers is not None:
            for layer in layers.layers:
                if not isinstance(layer, GradientCheckpointingLayer):
                    installed.callback(layer.register_forward_hook(_after_layer).remove)
            if not isinstance(layers.decoder, PreTrainedModel):
                installed.callback(layers.decoder.register_forward_hook(_after_decoder).remove)
        yield
