"""What a batch gives is told to the request that it belongs to, and to no other."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor

from corevital.capture import continuous_batch
from corevital.capture.continuous_batch import BatchObserver, BatchStep, Schedule, ScheduledRow
from corevital.capture.continuous_request import (
    CANCELLED,
    ERROR,
    LENGTH,
    STOP,
    Ending,
    RequestCall,
    RequestRun,
)
from corevital.capture.observation import Interval, describe_model
from corevital.capture.unobservable import Unobservable
from corevital.record import CaptureMode, GenerationRecord
from tests.models import tiny_model

VOCABULARY, EOS = 16, 1


class Status(Enum):
    DECODING = 1
    FINISHED = 2


@dataclass
class State:
    """A manager's account of a request."""

    request_id: str
    status: Status = Status.DECODING
    tokens: list[int] = field(default_factory=list)


class Manager:
    """Does to states and observer what a manager of continuous batching does."""

    def __init__(self) -> None:
        self.observer = BatchObserver(3, lambda state: list(state.tokens))
        self.endings: dict[str, Ending] = {}
        self.runs: dict[str, RequestRun] = {}
        self._batches: list[tuple[list[State], list[int]]] = []
        self._model = tiny_model("llama")

    def add(self, request_id: str, mode: CaptureMode = CaptureMode.FULL) -> State:
        def ended(ending: Ending) -> None:
            self.endings[request_id] = ending

        call = RequestCall(self._model, {"eos_token_id": EOS}, [5, 6, 7])
        self.runs[request_id] = RequestRun(call, mode, ended)
        self.observer.request_added(request_id, self.runs[request_id])
        return State(request_id)

    def compute(
        self, states: list[State], tokens: list[int], rows: Callable[[], Any] | None = None
    ) -> BatchStep | None:
        scheduled = [ScheduledRow(row, state.request_id, state) for row, state in enumerate(states)]
        step = self.observer.batch_begins(lambda: Schedule(scheduled, len(states)))
        self._batches.append((states, tokens))
        if step is not None:
            self.observer.batch_computed(step, rows or (lambda: peaked(tokens)))
        return step

    def update(self, finished: tuple[State, ...] = ()) -> None:
        states, tokens = self._batches.pop(0)

        def take() -> None:
            for state, token in zip(states, tokens, strict=True):
                if state.status is Status.DECODING:
                    state.tokens.append(token)
                    if state in finished:
                        state.status = Status.FINISHED

        self.observer.update(take)

    def record(self, request_id: str) -> GenerationRecord:
        reason = self.endings[request_id].finish_reason
        return self.runs[request_id].record(describe_model(self._model), Interval(0, 0, 10), reason)


def peaked(tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Logits of rows whose token has as many bits of surprisal as the row's place says."""
    logits = torch.zeros(len(tokens), VOCABULARY)
    for row in range(len(tokens)):
        logits[row, 0] = 3.0 * row
    return logits, torch.tensor(tokens)


def expected_margin(row: int) -> float:
    probabilities = torch.softmax(peaked([0] * (row + 1))[0][row], dim=-1)
    top = torch.topk(probabilities, 2).values
    return float(top[0] - top[1])


def test_rows_are_those_of_their_requests_when_the_batch_changes() -> None:
    manager = Manager()
    first, second = manager.add("first"), manager.add("second")
    manager.compute([first, second], [3, 4])
    manager.update()
    manager.compute([second, first], [5, 6])
    manager.update(finished=(second,))
    manager.compute([first], [EOS])
    manager.update(finished=(first,))

    one, two = manager.record("first"), manager.record("second")
    assert (one.token_ids.tolist(), two.token_ids.tolist()) == ([3, 6, EOS], [4, 5])
    assert (one.finish_reason, two.finish_reason) == (STOP, LENGTH)
    assert one.logits is not None
    assert two.logits is not None
    assert one.logits.margin.tolist() == pytest.approx([expected_margin(row) for row in (0, 1, 0)])
    assert two.logits.margin.tolist() == pytest.approx([expected_margin(row) for row in (1, 0)])
    assert manager.observer.requests == {}


def test_a_batch_may_be_computed_before_the_one_before_is_taken() -> None:
    manager = Manager()
    state, other = manager.add("one"), manager.add("other")
    manager.compute([state, other], [3, 4])
    manager.compute([other, state], [5, 6])
    manager.update()
    manager.update(finished=(state, other))

    assert manager.record("one").token_ids.tolist() == [3, 6]
    margins = manager.record("one").logits
    assert margins is not None
    assert margins.margin.tolist() == pytest.approx([expected_margin(0), expected_margin(1)])


def test_a_token_that_the_manager_drops_is_not_the_requests() -> None:
    manager = Manager()
    state = manager.add("one")
    manager.compute([state], [3])
    manager.update()
    manager.compute([state], [4])
    # Put back for want of room: its account is closed, and another takes its place.
    state.status = Status.FINISHED
    manager.update()
    assert manager.endings == {}

    again = State("one")
    manager.compute([again], [4])
    manager.update(finished=(again,))
    record = manager.record("one")
    assert record.token_ids.tolist() == [3, 4]
    assert record.logits is not None


def test_requests_that_nobody_told_of_are_let_be() -> None:
    manager = Manager()
    known, unknown = manager.add("known"), State("unknown")
    manager.compute([unknown, known], [3, 4])
    manager.update(finished=(unknown, known))

    record = manager.record("known")
    assert record.logits is not None
    assert record.logits.margin.tolist() == pytest.approx([expected_margin(1)])


def test_nothing_is_reduced_for_requests_that_are_off() -> None:
    manager = Manager()
    state = manager.add("off", CaptureMode.OFF)
    assert manager.compute([state], [3]) is None
    manager.update(finished=(state,))

    record = manager.record("off")
    assert record.token_ids.tolist() == [3]
    assert record.capture.logits.reason == "capture is off"
    assert not record.observed


def test_a_batch_that_cannot_be_seen_ends_the_logits_with_its_reason() -> None:
    def unseen() -> Any:
        raise Unobservable("replayed")

    manager = Manager()
    state = manager.add("one")
    manager.compute([state], [3])
    manager.update()
    manager.compute([state], [4], unseen)
    manager.update(finished=(state,))

    record = manager.record("one")
    assert record.token_ids.tolist() == [3, 4]
    assert record.logits is None
    assert record.capture.logits.reason == "replayed"
    assert record.capture.failures == 0


def test_a_failure_is_logged_once_counted_and_over_with_its_requests(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> Any:
        raise IndexError("no such row")

    monkeypatch.setattr(continuous_batch, "_already_logged", set())
    manager = Manager()
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            state = manager.add(name)
            manager.compute([state], [3], broken)
            manager.update(finished=(state,))
    healthy = manager.add("healthy")
    manager.compute([healthy], [3])
    manager.update(finished=(healthy,))

    assert len(caplog.records) == 1
    assert manager.runs["one"].failed_signals == manager.runs["two"].failed_signals == ["logits"]
    assert manager.record("one").capture.logits.reason == "IndexError: no such row"
    assert manager.record("healthy").logits is not None


def test_what_the_manager_raises_passes() -> None:
    def fails() -> None:
        raise KeyError("the manager's own")

    with pytest.raises(KeyError, match="own"):
        Manager().observer.update(fails)


@pytest.mark.parametrize("reason", [CANCELLED, ERROR])
def test_what_was_not_forked_yet_ends_with_its_parent(reason: str) -> None:
    manager = Manager()
    manager.add("parent")
    begun, unborn = manager.add("child#0"), manager.add("child#1")
    manager.runs["parent"].family = ("child#0", "child#1")
    manager.compute([begun], [3])
    manager.update()
    error = ValueError() if reason == ERROR else None
    manager.observer.request_ended("parent", reason, error)

    assert {name: end.finish_reason for name, end in manager.endings.items()} == {
        "parent": reason,
        unborn.request_id: reason,
    }
    assert manager.endings["child#1"].error is error


def test_what_is_open_ends_with_the_loop_or_when_its_id_is_used_again() -> None:
    manager = Manager()
    manager.add("one")
    first = manager.runs["one"]
    manager.add("one")
    assert manager.endings["one"].finish_reason is None
    assert manager.observer.requests["one"] is not first

    manager.observer.loop_ends()
    manager.observer.request_ended("one", CANCELLED)
    assert manager.observer.requests == {}
    assert manager.endings["one"].finish_reason is None
