"""Makes a model say what a test wants it to say."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor, LogitsProcessorList


class Forces(LogitsProcessor):
    """Leaves the model one token to choose at each step, in every row the same."""

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = iter(tokens)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        # A loop may ask for one token more than it keeps.
        forced[:, next(self._tokens, 0)] = 0.0
        return forced


def forcing(tokens: list[int]) -> LogitsProcessorList:
    """What ``generate`` takes as ``logits_processor``; for one call."""
    return LogitsProcessorList([Forces(tokens)])
