"""The supported ways to learn of rows and tokens: a criterion that never stops, and a processor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from corevital.capture.beam_run import BeamRun
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


class RowObserver(LogitsProcessor):
    """Tells a run of beam search which rows its forward pass was over."""

    def __init__(self, run: BeamRun) -> None:
        self._run = run

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """``scores`` as they are."""
        self._run.rows_known(input_ids)
        return scores


def with_row_observer(processors: Iterable[Any] | None, run: BeamRun) -> LogitsProcessorList:
    """The user's logits processors, in their order, and the observer behind them."""
    return LogitsProcessorList([*(processors or ()), RowObserver(run)])


class Stopper(StoppingCriteria):
    """Stops the sequences that an intervention stops."""

    def __init__(self, run: GenerationRun) -> None:
        self._run = run

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """Whether each sequence ``[B]`` is to be stopped."""
        return self._run.rows_to_stop(input_ids)  # type: ignore[return-value]


def with_observer(criteria: Iterable[Any] | None, run: GenerationRun) -> StoppingCriteriaList:
    """The user's stopping criteria, in their order, and the observer behind them."""
    return StoppingCriteriaList([*(criteria or ()), TokenObserver(run)])


def with_stopper(criteria: Iterable[Any] | None, run: GenerationRun) -> StoppingCriteriaList:
    """Such criteria, and behind them the one that stops what an intervention stops."""
    return StoppingCriteriaList([*(criteria or ()), Stopper(run)])
