"""Surprisal of a prompt's tokens agrees with the reference, however little is held at a time."""

from __future__ import annotations

import json
import math
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from corevital.capture import prompt_surprisal as module
from corevital.capture.prompt_surprisal import prompt_surprisal

REFERENCE: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "reference" / "prompt_surprisal.json").read_text()
)


@pytest.mark.parametrize("buffer_bytes", [None, 500], ids=["at once", "in chunks"])
def test_prompt_surprisal_reference(
    buffer_bytes: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if buffer_bytes is not None:
        monkeypatch.setattr(module, "LOGITS_BYTES", buffer_bytes)
    for case in REFERENCE:
        logits = torch.tensor(case["logits"])[None]
        surprisal, last = prompt_surprisal(
            logits, nn.Identity(), torch.tensor(case["token_ids"])[None]
        )
        assert surprisal[0].tolist() == pytest.approx(case["surprisal_bits"], abs=1e-3)
        assert torch.equal(last, logits[:, -1])


@pytest.mark.parametrize("parts", [None, 1, 50], ids=["at once", "rows", "rows and vocabulary"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 3])
def test_the_product_of_a_linear_layer_is_never_there_as_a_whole(
    batch: int,
    dtype: torch.dtype,
    parts: int | None,
    monkeypatch: pytest.MonkeyPatch,
    *,
    bias: bool,
    onednn: bool,
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    torch.manual_seed(0)
    head = nn.Linear(8, 130, bias=bias, dtype=dtype)
    states, ids = torch.randn(batch, 9, 8, dtype=dtype), torch.randint(0, 130, (batch, 9))
    if parts is not None:
        monkeypatch.setattr(module, "_LEAST_VOCABULARY", 130 // parts)
        monkeypatch.setattr(module, "bytes_together", lambda device: 8 * (130 // parts) * 4)
    shapes: list[tuple[int, ...]] = []
    log_sum_exp = module._log_sum_exp

    def noted(logits: torch.Tensor, dim: int, peak: torch.Tensor) -> torch.Tensor:
        shapes.append(tuple(logits.shape))
        return log_sum_exp(logits, dim, peak)

    monkeypatch.setattr(module, "_log_sum_exp", noted)
    with torch.no_grad():
        bits, newest = prompt_surprisal(states, head, ids)
        logits = head(states).double()
    expected = -torch.log_softmax(logits[:, :-1], -1) / math.log(2)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(
        bits.double(), expected.gather(-1, ids[:, 1:, None])[..., 0], rtol=0, atol=tolerance
    )
    torch.testing.assert_close(newest.double(), logits[:, -1], rtol=0, atol=tolerance)
    if parts is not None:
        assert max(positions for _, positions in shapes) == 4
        assert max(tokens for tokens, _ in shapes) == 130 // parts


@pytest.mark.parametrize("states_in", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_in", [torch.float32, torch.bfloat16, torch.float16])
def test_states_in_another_precision_than_the_head(
    states_in: torch.dtype, head_in: torch.dtype
) -> None:
    torch.manual_seed(0)
    head = nn.Linear(8, 50, dtype=head_in)
    states, ids = torch.randn(1, 9, 8, dtype=states_in), torch.randint(0, 50, (1, 9))
    surprisal, newest = prompt_surprisal(states, head, ids)
    expected, expected_newest = prompt_surprisal(states.to(head_in), head, ids)
    assert torch.equal(surprisal, expected)
    assert torch.equal(newest, expected_newest)


def test_hooks_of_the_application_on_the_head_see_the_applications_calls_only() -> None:
    head = nn.Linear(4, 8, bias=False)
    seen: list[object] = []
    head.register_forward_hook(lambda module, args, output: seen.append(output))
    prompt_surprisal(torch.randn(1, 3, 4), head, torch.tensor([[1, 2, 3]]))
    assert seen == []


def test_only_one_part_of_the_logits_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    class Head(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            alive.append(sum(each() is not None for each in made))
            product = super().forward(input)
            made.append(weakref.ref(product))
            return product

    monkeypatch.setattr(module, "LOGITS_BYTES", 4 * 50 * 3)
    ids = torch.randint(0, 50, (1, 9))
    with torch.no_grad():
        prompt_surprisal(torch.randn(1, 9, 8), Head(8, 50), ids)
    assert alive == [0, 0, 0]


@pytest.mark.parametrize("keeps", [False, True], ids=["a linear layer", "a head that keeps it"])
def test_logits_that_the_head_keeps_stay_as_they_are(keeps: bool) -> None:
    kept: list[torch.Tensor] = []

    class Head(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            kept.append(super().forward(input))
            return kept[-1]

    torch.manual_seed(0)
    head, states = Head(8, 50), torch.randn(2, 9, 8)
    ids = torch.randint(0, 50, (2, 9))
    plain = nn.Linear(8, 50)
    plain.load_state_dict(head.state_dict())
    with torch.no_grad():
        surprisal, newest = prompt_surprisal(states, head if keeps else plain, ids)
        logits = plain(states)
    expected = -torch.log_softmax(logits[:, :-1].double(), -1) / math.log(2)
    torch.testing.assert_close(surprisal.double(), expected.gather(-1, ids[:, 1:, None])[..., 0])
    torch.testing.assert_close(newest, logits[:, -1])
    assert all(torch.equal(each, logits) for each in kept)


@pytest.mark.parametrize("whole", [False, True], ids=["by vocabulary", "whole rows"])
def test_what_is_no_token_of_the_head_has_no_surprisal(whole: bool) -> None:
    class Head(nn.Linear):
        pass

    head = (Head if whole else nn.Linear)(8, 50)
    states = torch.randn(1, 5, 8)
    with_others, _ = prompt_surprisal(states, head, torch.tensor([[3, 50, 7, 2**31, 49]]))
    without, _ = prompt_surprisal(states, head, torch.tensor([[3, 4, 7, 5, 49]]))
    assert with_others.isnan().tolist() == [[True, False, True, False]]
    assert torch.equal(with_others[:, 1::2], without[:, 1::2])
