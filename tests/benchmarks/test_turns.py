"""A plain and an instrumented generation that take turns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationMixin

from benchmarks.overhead import instrumented
from benchmarks.turns import Patches, take_turns
from corevital.capture.active import active_run
from tests.models import tiny_model, tiny_prompt

TOKENS = 12


@pytest.mark.parametrize("sample", [False, True])
def test_both_have_the_tokens_that_each_has_alone(sample: bool) -> None:
    model = tiny_model("llama")

    def generate(**arguments: Any) -> torch.Tensor:
        torch.manual_seed(3)
        tokens: torch.Tensor = model.generate(
            tiny_prompt(batch=2),
            max_new_tokens=TOKENS,
            min_new_tokens=TOKENS,
            do_sample=sample,
            **arguments,
        )
        return tokens

    alone = generate()
    patches = Patches()
    with instrumented("full"):
        plain, observed = take_turns(generate, patches, "cpu", plain_first=True)

    assert torch.equal(plain.tokens, alone)
    assert torch.equal(observed.tokens, alone)
    for side in (plain, observed):
        assert len(side.seconds) == TOKENS + 1
        assert min(side.seconds) > 0
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("plain_first", [True, False])
def test_one_is_observed_and_the_other_meets_the_library_as_it_is(plain_first: bool) -> None:
    model = tiny_model("llama")
    original, call = GenerationMixin.generate, type(model).__call__
    seen: list[tuple[bool, bool]] = []

    def note(*_: Any) -> None:
        untouched = GenerationMixin.generate is original and type(model).__call__ is call
        seen.append((untouched, active_run.get() is None))

    model.model.layers[0].register_forward_hook(note)

    def generate(**arguments: Any) -> torch.Tensor:
        tokens: torch.Tensor = model.generate(
            tiny_prompt(), max_new_tokens=4, min_new_tokens=4, do_sample=False, **arguments
        )
        return tokens

    patches = Patches()
    with instrumented("full"):
        take_turns(generate, patches, "cpu", plain_first=plain_first)
        assert GenerationMixin.generate is not original
    assert GenerationMixin.generate is original
    # Plain and instrumented, instrumented and plain, and so on; or the other way round.
    plain = [plain_first, not plain_first, not plain_first, plain_first] * 2
    assert seen == [(each, each) for each in plain]


def test_what_one_raises_is_raised() -> None:
    def generate(**_: Any) -> torch.Tensor:
        raise LookupError("no such model")

    with pytest.raises(LookupError, match="no such model"):
        take_turns(generate, Patches(), "cpu", plain_first=True)
