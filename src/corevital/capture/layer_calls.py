"""Observes decoder layers at the call that they share, at a fraction of a hook's cost.

Almost every decoder layer in ``transformers`` is a ``GradientCheckpointingLayer``. A wrapper of its
``__call__`` leaves the models alone: nothing is installed on them, and nothing has to be removed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from corevital.capture.active import active_run

LayerCall = Callable[..., Any]


def observed_layer_call(call: LayerCall) -> LayerCall:
    """``call`` itself, whose result is shown to the run that is active."""

    @functools.wraps(call)
    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = call(self, *args, **kwargs)
        if not torch.compiler.is_compiling():
            run = active_run.get()
            if run is not None:
                run.layer_returns(self, args, output)
        return output

    return __call__
