"""The supported way to learn of every accepted token: a stopping criterion that never stops."""

from __future__ import annotations

from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from corevital.capture.run import GenerationRun


class TokenObserver(StoppingCriteria):
    """Tells a run of every token that ``generate`` accepts."""

    def __init__(self, run: GenerationRun) -> None:
        self._run = run

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """Never done, for every sequence ``[B]``."""
        self._run.token_chosen(input_ids)
        return self._run.not_done(input_ids)  # type: ignore[return-value]


def with_observer(criteria: list[Any] | None, run: GenerationRun) -> StoppingCriteriaList:
    """The user's stopping criteria, in their order, and the observer behind them."""
    return StoppingCriteriaList([*(criteria or ()), TokenObserver(run)])
