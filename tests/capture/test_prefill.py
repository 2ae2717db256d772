"""Prompt telemetry of a batch: what several answers to one prompt share is computed once."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from corevital.capture.prefill import Prefill, answers_to_each
from tests.models import tiny_model, tiny_prompt

A, B, C = [5, 6, 7], [5, 6, 8], [9, 6, 7]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([A], 1),
        ([A, A, A], 3),
        ([A, B], 1),
        ([A, A, B, B, C, C], 2),
        ([A, A, A, A, B, B], 1),
        ([A, A, B, C], 1),
        ([A, A, B, B, B], 1),
        ([A, B, B], 1),
    ],
)
def test_how_many_rows_have_each_prompt(rows: list[list[int]], expected: int) -> None:
    ids = torch.tensor(rows)
    assert answers_to_each(ids, torch.ones_like(ids, dtype=torch.bool)) == expected


def test_prompts_that_differ_in_padding_only_are_not_the_same() -> None:
    ids = torch.tensor([A, A])
    valid = torch.tensor([[True, True, True], [False, True, True]])
    assert answers_to_each(ids, valid) == 1


def test_surprisal_is_that_of_each_row() -> None:
    model: Any = tiny_model("llama")
    prompts = tiny_prompt(batch=2, tokens=9)
    rows = prompts.repeat_interleave(3, dim=0)
    head = model.get_output_embeddings()
    products: list[torch.Size] = []
    whole = head.forward

    def forward(states: torch.Tensor) -> Any:
        products.append(states.shape[:2])
        return whole(states)

    head.forward = forward
    prefill = Prefill(rows, None)
    with torch.no_grad():
        states = model.get_decoder()(rows).last_hidden_state
        logits = whole(states)
        prefill.last_layer(3, states)
        prefill.logits(model, logits)

    chosen = logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
    expected = -chosen / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(cast(torch.Tensor, prefill.surprisal), expected)
    assert float(cast(torch.Tensor, prefill.surprisal_error)) < 1e-4
    assert products == [(2, 9)], "each prompt once"
