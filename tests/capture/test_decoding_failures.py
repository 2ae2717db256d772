"""Where following a decoding fails, the generation goes on, and an interruption gets through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from corevital.assess.assessment import assess
from corevital.assess.profile import Profile
from corevital.capture import attention, hidden, logits, observed_signals
from corevital.capture.active import active_run
from corevital.capture.loop_run import LoopRun
from tests.capture.contrastive_search import uncached_search
from tests.capture.observe import observe, observing
from tests.models import tiny_model, tiny_prompt


def loop(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    for _step in range(5):
        newest = model(input_ids).logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, newest), dim=-1)
    return input_ids


CASES: dict[str, dict[str, Any]] = {
    "corevital.capture.beam_run.prefix_hashes": {"num_beams": 3, "num_return_sequences": 2},
    "corevital.capture.assisted_run.AssistedRun._prompt_known": {"prompt_lookup_num_tokens": 3},
    "corevital.capture.assisted_run.cached_positions": {"prompt_lookup_num_tokens": 3},
    "corevital.capture.assisted_run.Ties.add": {"prompt_lookup_num_tokens": 3},
    "corevital.capture.run.given_ids": {"custom_generate": loop},
    "corevital.capture.loop_run.seen_positions": {"custom_generate": loop},
    "corevital.capture.loop_run.Trial.rows_of": {"custom_generate": uncached_search},
    "corevital.capture.chunked_prefill.cached_positions": {"prefill_chunk_size": 5},
}


@pytest.fixture(autouse=True)
def nothing_logged_before() -> Iterator[None]:
    observed_signals._already_logged.clear()
    yield
    observed_signals._already_logged.clear()


@pytest.mark.parametrize("place", CASES)
def test_a_failure_is_logged_once_and_the_generation_goes_on(
    place: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny_model("llama")
    arguments = {"inputs": tiny_prompt(), "max_new_tokens": 5} | CASES[place]
    expected = model.generate(**arguments)

    def broken(*_: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(place, broken)
    result, records = observe(model, **arguments)
    observe(model, **arguments)

    assert torch.equal(result, expected)
    for record in records:
        assert not record.observed
        assert record.capture.failures == 1
        assert record.capture.logits.reason == "RuntimeError: broken"
    assert [each.getMessage() for each in caplog.records if each.name.startswith("corevital")] == [
        "Observing tokens failed; the generation goes on."
    ]


@pytest.mark.parametrize(
    ("signal", "place"),
    [
        ("logits", (logits, "_statistics")),
        ("hidden", (hidden, "hidden_statistics")),
        ("attention", (attention, "head_statistics")),
    ],
    ids=["logits", "hidden", "attention"],
)
def test_what_fails_at_a_later_step_leaves_a_record_that_can_be_assessed(
    signal: str, place: tuple[ModuleType, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    works = getattr(*place)
    calls: list[tuple[Any, ...]] = []

    def broken_later(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > 1:
            raise RuntimeError("broken")
        return works(*arguments)

    monkeypatch.setattr(*place, broken_later)
    _, (record,) = observe(tiny_model("llama"), inputs=tiny_prompt(), max_new_tokens=100)

    assert len(calls) == 2
    assert getattr(record.capture, signal).reason == "RuntimeError: broken"
    for columns in (record.logits, record.hidden, record.attention):
        assert columns is None or {len(values) for values in by_step(columns)} == {100}
    assert (record.logits is None) == (signal == "logits")
    assert not assess(record, Profile()).flags.nan_or_inf


@pytest.mark.parametrize("signal", ["logits", "hidden", "attention"])
@pytest.mark.parametrize("at", [1, 4])
def test_what_fails_while_tokens_are_tried_leaves_the_other_signals(
    signal: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, name = {
        "logits": (LoopRun, "_keep_tried_logits"),
        "hidden": (LoopRun, "_add_states"),
        "attention": (attention, "_rows_of"),
    }[signal]
    works = getattr(place, name)
    calls: list[tuple[Any, ...]] = []

    def broken_later(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > at:
            raise RuntimeError("broken")
        return works(*arguments)

    patched = staticmethod(broken_later) if name == "_keep_tried_logits" else broken_later
    monkeypatch.setattr(place, name, patched)
    arguments = {"max_new_tokens": 9, "custom_generate": uncached_search}
    _, records = observe(tiny_model("llama"), inputs=tiny_prompt(batch=2), **arguments)

    for record in records:
        assert record.steps == 9
        assert record.capture.failures == 1
        for each in ("logits", "hidden", "attention"):
            reason = "RuntimeError: broken" if each == signal else None
            assert getattr(record.capture, each).reason == reason
        for columns in (record.logits, record.hidden, record.attention):
            assert columns is None or {len(values) for values in by_step(columns)} == {9}


def by_step(columns: Any) -> list[Any]:
    """The columns that have a value for each step."""
    constant = {"layers", "heads", "previous_token_weight"}
    names = [each.name for each in fields(columns) if each.name not in constant]
    return [getattr(columns, name) for name in names]


class TimeLimit(Exception):
    """What an application raises from another thread or a signal handler."""


@pytest.mark.parametrize("place", CASES)
def test_an_interruption_that_strikes_there_is_the_applications(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model("llama")
    error = TimeLimit()
    with observing():
        # Without a frame of the application's, as when another thread raises it.
        monkeypatch.setattr(place, Mock(side_effect=error))
        with pytest.raises(TimeLimit) as raised:
            model.generate(tiny_prompt(), max_new_tokens=5, **CASES[place])
    assert raised.value is error
    assert active_run.get() is None
