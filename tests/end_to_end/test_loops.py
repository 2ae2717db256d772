"""Loops of a real model are found; texts that repeat themselves and are right to are no loops."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from corevital import Observed
from corevital.assess.loops import Loop, find_loops
from corevital.capture.lags import LagCosines
from corevital.record import LAGS, GenerationRecord
from tests.assess.records import hidden_columns, record
from tests.assess.repetitive_texts import NO_LOOPS, THREE_COPIES
from tests.instrumentation import attributes, instrumented
from tests.providers import in_memory_telemetry
from tests.smollm2 import LoadedModel

TOKENS = 125
# What the model says again and again, token by token, when it is to go on from these words.
LOOPING = {
    "We went to the beach and": ". I was so happy",
    "Once upon a time there was a little girl who": " loved to play in the sun. She",
    "I love you because": " glad you're here, and I'm",
}
# The model counts, so that what is repeated is never quite the same.
NOT_LOOPING = (
    "Write the numbers from 1 to 100, one per line.",
    "Write the multiplication table of 7 up to 7 x 20.",
)


class Generated(NamedTuple):
    """One sequence of the batch."""

    observed: Observed
    attributes: dict[str, Any]
    text: str


@pytest.fixture(scope="module")
def generated(smollm2: LoadedModel) -> dict[str, Generated]:
    """What the model says, by prompt; all in one batch, of which only the last layer is seen."""
    questions = [smollm2.tokenizer.decode(smollm2.chat(q)["input_ids"][0]) for q in NOT_LOOPING]
    observed: list[Observed] = []
    inputs = smollm2.tokenizer(
        [*LOOPING, *questions], return_tensors="pt", padding=True, add_special_tokens=False
    )
    with (
        in_memory_telemetry() as telemetry,
        instrumented(telemetry, capture="summary", on_generation=observed.append),
    ):
        smollm2.model.generate(
            **inputs, do_sample=False, max_new_tokens=TOKENS, min_new_tokens=TOKENS
        )
        children = [span for span in telemetry.spans() if span.parent is not None]
    return {
        prompt: Generated(
            each, attributes(child), str(smollm2.tokenizer.decode(each.record.token_ids))
        )
        for prompt, each, child in zip([*LOOPING, *NOT_LOOPING], observed, children, strict=True)
    }


def independent_onset(tokens: list[int], period: int) -> int:
    """Where the stretch begins that has this period until the end of the text."""
    onset = len(tokens) - period
    while onset > 0 and tokens[onset - 1] == tokens[onset - 1 + period]:
        onset -= 1
    return onset


@pytest.mark.parametrize("prompt", LOOPING)
def test_a_loop_is_found(generated: dict[str, Generated], prompt: str) -> None:
    observed, written, text = generated[prompt]
    tokens = observed.record.token_ids.tolist()
    assert text.count(LOOPING[prompt]) > 4
    assert observed.assessment is not None

    (loop,) = observed.assessment.loops

    assert loop.onset_step == independent_onset(tokens, loop.period)
    assert loop.onset_step == min(independent_onset(tokens, p) for p in range(1, loop.period + 1))
    assert loop.end_step is None
    assert {n: v for n, v in written.items() if n.startswith("corevital.repetition.")} == {
        "corevital.repetition.detected": True,
        "corevital.repetition.onset_step": loop.onset_step,
        "corevital.repetition.period": loop.period,
        "corevital.repetition.repeats": (TOKENS - loop.onset_step) // loop.period,
    }


@pytest.mark.parametrize("prompt", LOOPING)
def test_the_states_of_a_loop_become_alike(generated: dict[str, Generated], prompt: str) -> None:
    observed = generated[prompt].observed
    assert observed.assessment is not None
    assert observed.record.hidden is not None
    assert observed.record.hidden.lag_cosine is not None
    (loop,) = observed.assessment.loops
    at_lag = observed.record.hidden.lag_cosine[:, loop.period - 1]
    second_copy = loop.onset_step + loop.period

    assert at_lag[second_copy:].min() < 0.95
    assert at_lag[-32:].min() > 0.98
    other_lags = [lag for lag in range(1, LAGS + 1) if lag % loop.period]
    assert observed.record.hidden.lag_cosine[-32:, np.asarray(other_lags) - 1].mean() < 0.9


@pytest.mark.parametrize("prompt", NOT_LOOPING)
def test_a_text_that_counts_is_no_loop(generated: dict[str, Generated], prompt: str) -> None:
    observed, written, text = generated[prompt]
    assert len(set(re.findall(r"\d+", text))) > 20
    assert observed.assessment is not None

    assert observed.assessment.loops == ()
    assert {n: v for n, v in written.items() if n.startswith("corevital.repetition.")} == {
        "corevital.repetition.detected": False
    }


def as_record(tokens: list[int], lag_cosine: Any) -> GenerationRecord:
    hidden = hidden_columns(np.ones((len(tokens), 1)), lag_cosine=lag_cosine)
    return replace(record(hidden=hidden), token_ids=np.asarray(tokens))


def loops_if_all_states_were_alike(tokens: list[int]) -> tuple[Loop, ...]:
    return find_loops(as_record(tokens, np.ones((len(tokens), LAGS))))


def loops_when_forced(loaded: LoadedModel, tokens: list[int]) -> tuple[Loop, ...]:
    """The loops of a text that the model itself is made to say, after a line of its own."""
    start = loaded.tokenizer("Here is the text:\n\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        model: Any = loaded.model
        outputs = model(
            torch.tensor([[*start, *tokens]]), output_hidden_states=True, use_cache=False
        )
    states = outputs.hidden_states[-1][0, len(start) - 1 : -1]
    return find_loops(as_record(tokens, LagCosines().of(states.unsqueeze(1))[:, 0]))


def tokens_of(loaded: LoadedModel, text: str) -> list[int]:
    tokens = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert isinstance(tokens, list)
    return tokens


@pytest.mark.parametrize("name", NO_LOOPS)
def test_ordinary_repetition_is_no_loop(smollm2: LoadedModel, name: str) -> None:
    assert loops_if_all_states_were_alike(tokens_of(smollm2, NO_LOOPS[name])) == ()


@pytest.mark.parametrize("name", THREE_COPIES)
def test_three_copies_are_no_loop_because_the_model_is_not_caught_in_them(
    smollm2: LoadedModel, name: str
) -> None:
    tokens = tokens_of(smollm2, THREE_COPIES[name])

    assert loops_if_all_states_were_alike(tokens) != ()
    assert loops_when_forced(smollm2, tokens) == ()


def test_in_many_copies_it_is_caught_whoever_wrote_them(smollm2: LoadedModel) -> None:
    tokens = tokens_of(smollm2, "I will not talk in class.\n" * 15)
    period = len(tokens) // 15

    (loop,) = loops_when_forced(smollm2, tokens)

    assert (loop.onset_step, loop.period) == (0, period)
