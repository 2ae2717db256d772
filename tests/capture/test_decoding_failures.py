"""Where following a decoding fails, the generation goes on, and an interruption gets through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from corevital.capture import run as runs
from corevital.capture.active import active_run
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
    "corevital.capture.chunked_prefill.cached_positions": {"prefill_chunk_size": 5},
}


@pytest.fixture(autouse=True)
def nothing_logged_before() -> Iterator[None]:
    runs._already_logged.clear()
    yield
    runs._already_logged.clear()


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
