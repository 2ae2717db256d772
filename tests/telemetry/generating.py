"""Short generations, and what can be put inside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from tests.models import GenerativeModel, tiny_prompt

STEPS = 5
PROMPT_TOKENS = 12


def greedy(model: GenerativeModel, prompt: torch.Tensor | None = None, **options: Any) -> Any:
    """Generate ``STEPS`` tokens after ``PROMPT_TOKENS``, unless ``options`` say otherwise."""
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False} | options
    return model.generate(tiny_prompt() if prompt is None else prompt, **settings)


class OnToken(BaseStreamer):
    """A streamer that calls a function with the place of every new token."""

    def __init__(self, act: Callable[[int], object]) -> None:
        self._act = act
        self._places = itertools.count(-1)

    def put(self, value: torch.Tensor) -> None:
        place = next(self._places)
        # The prompt comes first.
        if place >= 0:
            self._act(place)

    def end(self) -> None:
        """Nothing is left to do."""


class AtStep(LogitsProcessor):
    """Calls a function once, while the scores of one step are processed."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._steps = itertools.count()
        self._step = step
        self._act = act

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if next(self._steps) == self._step:
            self._act()
        return scores


class AfterStep(StoppingCriteria):
    """Calls a function once, when the token of one step has been chosen; never stops."""

    def __init__(self, step: int, act: Callable[[], object]) -> None:
        self._steps = itertools.count()
        self._step = step
        self._act = act

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        if next(self._steps) == self._step:
            self._act()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)  # type: ignore[return-value]
