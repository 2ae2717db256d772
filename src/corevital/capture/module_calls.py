"""Observes models and decoder layers at the calls that they share, at a fraction of a hook's cost.

Every model is a ``PreTrainedModel``, almost every decoder layer a ``GradientCheckpointingLayer``.
Wrappers of their ``__call__`` leave the models alone: nothing is installed on them, nothing has to
be removed, and no lock has to be held.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch.compiler import is_dynamo_compiling

from corevital.capture.active import active_run

ModuleCall = Callable[..., Any]


def observed_layer_call(call: ModuleCall) -> ModuleCall:
    """``call`` itself, whose result is shown to the run that is active."""

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(self, *args, **kwargs)
        run = None if is_dynamo_compiling() else active_run.get()
        if run is not None:
            # As run.layer_returns would; the call costs more than the rest.
            put_by = run.layers_put_by
            if put_by is None:
                run.layer_returns(self, args, output)
            elif run.everything or run.last_layer is self:
                put_by.append((self, output))
        return output

    return __call__


def observed_model_call(call: ModuleCall) -> ModuleCall:
    """``call`` itself, whose arguments and result are shown to the run that is active."""

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        run = None if is_dynamo_compiling() else active_run.get()
        if run is None:
            return call(self, *args, **kwargs)
        if run.model is self:
            run.forward_starts(args, kwargs)
        else:
            run.encoder_starts(self, args, kwargs)
        output = call(self, *args, **kwargs)
        if run.decoder is self:
            run.decoder_returns(output)
        if run.model is self:
            run.forward_returns(output)
        else:
            run.encoder_returns(self, output)
        return output

    return __call__
