"""Decoding loops over ``custom_generate`` that several tests run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationMixin


def library_loop(model: Any, input_ids: Any, **options: Any) -> Any:
    """The library's own."""
    return GenerationMixin._sample(model, input_ids, **options)


View = Callable[[Any, torch.Tensor], torch.Tensor]
"""A model's logits ``[B, V]`` behind a text."""


def of_everything(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids).logits[:, -1]
    return logits


def of_the_newest(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    return of_everything(model, input_ids[:, -3:])


def contrasting(first: View, second: View, steps: int, penalty: float = 0.5) -> Callable[..., Any]:
    """Contrastive decoding: by one view of the model's own against another."""

    def loop(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        for _step in range(steps):
            views = first(model, input_ids), second(model, input_ids)
            likely, unlikely = (logits.log_softmax(-1) for logits in views)
            chosen = (likely - penalty * unlikely).argmax(-1, keepdim=True)
            input_ids = torch.cat((input_ids, chosen), dim=-1)
        return input_ids

    return loop
