"""Observes with which tokens the loops of ``GenerationMixin`` begin."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from torch import Tensor

from corevital.capture.active import active_run

LOOPS: Final = ("_sample", "_beam_search", "_assisted_decoding")


def observed_loop(loop: Callable[..., Any]) -> Callable[..., Any]:
    """``loop`` itself, whose first tokens are shown to the run that is active."""

    @functools.wraps(loop)
    def observed(model: Any, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        run = active_run.get()
        if run is not None and run.model is model:
            run.loop_begins(input_ids)
        return loop(model, input_ids, *args, **kwargs)

    return observed
