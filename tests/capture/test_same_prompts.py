"""Rows of a batch that are the same prompt: what they share is observed once, and told of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from corevital import GenerationRecord
from corevital.capture.attention import AttentionCall
from corevital.capture.prefill import Prefill
from corevital.capture.prompt import PromptAttention
from corevital.capture.same_prompts import answers_to_each, repetitions
from tests.capture.observe import observe
from tests.models import GenerativeModel, padded_prompts, tiny_model, tiny_prompt

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
def test_how_often_each_row_stands_there(rows: list[list[int]], expected: int) -> None:
    assert repetitions(torch.tensor(rows)) == expected


ROWS = torch.tensor([A, A])
VALID = torch.ones_like(ROWS)
PADDED = torch.tensor([[1, 1, 1], [0, 1, 1]])
PLACES = torch.tensor([[0, 1, 2], [0, 1, 2]])


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"attention_mask": VALID, "position_ids": PLACES, "use_cache": True},
        {"position_ids": PLACES[:1], "past_key_values": object(), "pixel_values": None},
    ],
    ids=["nothing else", "what generate gives", "positions of all rows"],
)
def test_rows_of_the_same_text_are_the_same_prompt(kwargs: dict[str, Any]) -> None:
    assert answers_to_each(torch.nn.Identity().eval(), ROWS, VALID, kwargs) == 2


@pytest.mark.parametrize(
    "kwargs",
    [
        {"position_ids": PLACES + torch.tensor([[0], [1]])},
        {"position_ids": PLACES.expand(3, 2, 3)},
        {"attention_mask": torch.ones(2, 1, 3, 3)},
        {"attention_mask": {"full_attention": VALID}},
        {"pixel_values": torch.zeros(2, 3, 8, 8)},
        {"token_type_ids": torch.zeros(2, 3)},
        {"adapter_names": ["one", "another"]},
    ],
    ids=[
        "positions",
        "several positions",
        "a mask of attention",
        "masks",
        "images",
        "types",
        "adapters",
    ],
)
def test_what_else_is_given_may_tell_rows_apart(kwargs: dict[str, Any]) -> None:
    assert answers_to_each(torch.nn.Identity().eval(), ROWS, VALID, kwargs) == 1


def test_without_padding_the_tokens_decide() -> None:
    assert answers_to_each(torch.nn.Identity().eval(), ROWS, None, {}) == 2
    assert answers_to_each(torch.nn.Identity().eval(), torch.tensor([A, B]), None, {}) == 1


def test_padding_tells_rows_apart() -> None:
    assert answers_to_each(torch.nn.Identity().eval(), ROWS, PADDED, {}) == 1


def test_dropout_tells_rows_apart() -> None:
    assert answers_to_each(torch.nn.Identity().train(), ROWS, VALID, {}) == 1


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows of each prefill had the same prompt."""
    found: list[int] = []
    begin = Prefill.__init__

    def noted(self: Prefill, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs)
        found.append(self.answers)

    monkeypatch.setattr(Prefill, "__init__", noted)
    return found


def prompts(records: list[GenerationRecord]) -> list[dict[str, Any]]:
    found = []
    for record in records:
        prompt = record.prompt
        assert prompt is not None
        assert prompt.sparse is not None
        found.append(
            {
                "surprisal": prompt.surprisal,
                "layer_transformation": prompt.layer_transformation,
                "basin": prompt.basin,
                "weight": prompt.sparse.weight,
                "key": prompt.sparse.key,
                "total": prompt.sparse.total,
            }
        )
    return found


@pytest.mark.parametrize(
    ("family", "backend"),
    [("llama", "sdpa"), ("llama", "eager"), ("mistral", "sdpa"), ("gpt_oss", "eager")],
)
def test_several_answers_have_the_prompt_that_one_has(
    family: str, backend: str, answers: list[int]
) -> None:
    """Of two prompts, one with padding; with windows and sinks, as each model has them."""
    model = tiny_model(family, attn_implementation=backend)
    given = padded_prompts([0, 4])
    _, single = observe(model, **given, max_new_tokens=3)
    _, several = observe(model, **given, max_new_tokens=3, do_sample=True, num_return_sequences=3)
    assert answers == [1, 3]
    expected = [prompt for prompt in prompts(single) for _ in range(3)]
    assert prompts(single)[0]["total"] != prompts(single)[1]["total"]
    for found, prompt in zip(prompts(several), expected, strict=True):
        for name, values in prompt.items():
            np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


def test_the_rows_of_several_beams_are_one_prompt(answers: list[int]) -> None:
    model: GenerativeModel = tiny_model("llama")
    prompt = tiny_prompt()
    _, (single,) = observe(model, input_ids=prompt, max_new_tokens=3)
    _, (beams,) = observe(model, input_ids=prompt, max_new_tokens=3, num_beams=4)
    assert answers == [1, 4]
    (found,), (expected,) = prompts([beams]), prompts([single])
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("with_weights", [False, True])
def test_of_rows_with_one_prompt_the_first_alone_is_held(*, with_weights: bool) -> None:
    maps = PromptAttention(torch.ones(1, 5, dtype=torch.bool), answers=4)
    query, weights = torch.randn(4, 2, 5, 8), torch.rand(4, 2, 5, 5)
    held = [StorageWeakRef(each.untyped_storage()) for each in (query, weights)]
    given = weights if with_weights else None
    maps.observe(AttentionCall(0, query, torch.randn(4, 2, 5, 8), None, given, {}))
    del query, weights, given
    assert all(each.expired() for each in held)


def test_of_their_states_the_first_rows_alone_are_held() -> None:
    prefill = Prefill(torch.ones(4, 5, dtype=torch.long), None, answers=4)
    before, after = torch.randn(4, 5, 8), torch.randn(4, 5, 8)
    held = [StorageWeakRef(each.untyped_storage()) for each in (before, after)]
    prefill.layer(0, (before,), after)
    del before, after
    assert all(each.expired() for each in held)
