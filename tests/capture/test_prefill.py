"""Prompt telemetry of a batch: what several answers to one prompt share is computed once."""

from __future__ import annotations

from typing import Any, cast

import torch

from corevital.capture.prefill import Prefill
from tests.models import tiny_model, tiny_prompt


def test_surprisal_is_that_of_each_prompt() -> None:
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
    prefill = Prefill(rows, None, answers=3)
    with torch.no_grad():
        states = model.get_decoder()(rows).last_hidden_state
        logits = whole(states)
        prefill.last_layer(3, states)
        prefill.logits(model, logits)

    chosen = logits[:, :-1].log_softmax(-1).gather(-1, rows[:, 1:, None]).squeeze(-1)
    expected = -chosen[::3] / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(cast(torch.Tensor, prefill.surprisal), expected)
    assert float(cast(torch.Tensor, prefill.surprisal_error)) < 1e-4
    assert products == [(2, 9)], "each prompt once"
