"""Each signal of a run is observed on its own, and the time that takes is counted once."""

from __future__ import annotations

import logging
import time

import pytest
import torch

from corevital.capture import observed_signals
from corevital.capture.observed_signals import ObservedSignals
from corevital.capture.unobservable import Unobservable

PAUSE = 0.05


@pytest.fixture(autouse=True)
def nothing_logged_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observed_signals, "_already_logged", set())


@pytest.fixture
def signals() -> ObservedSignals:
    return ObservedSignals()


def broken() -> None:
    raise RuntimeError("broken")


def test_a_signal_whose_observation_fails_ends_and_leaves_the_others(
    signals: ObservedSignals,
) -> None:
    seen: list[str] = []
    signals.observe("hidden", broken)
    signals.observe("hidden", seen.append, "hidden")
    signals.observe("logits", seen.append, "logits")
    assert seen == ["logits"]
    assert signals.failed == ["hidden"]
    assert signals.unavailable == {"hidden": "RuntimeError: broken"}


def test_a_failure_is_logged_once_per_process(
    signals: ObservedSignals, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        for each in (signals, ObservedSignals()):
            each.observe("hidden", broken)
    (logged,) = caplog.records
    assert logged.getMessage() == "Observing hidden failed; the generation goes on."
    assert logged.exc_info is not None


def test_a_reason_has_an_end(signals: ObservedSignals) -> None:
    def verbose() -> None:
        raise ValueError("x" * 10_000)

    signals.observe("prompt", verbose)
    assert len(signals.unavailable["prompt"]) == 200


def test_what_cannot_be_observed_is_no_failure(
    signals: ObservedSignals, caplog: pytest.LogCaptureFixture
) -> None:
    def elsewhere() -> None:
        raise Unobservable("the layers are elsewhere")

    signals.observe("hidden", elsewhere)
    assert signals.unavailable == {"hidden": "the layers are elsewhere"}
    assert signals.failed == []
    assert caplog.records == []


def test_an_exception_that_is_not_corevitals_gets_through(signals: ObservedSignals) -> None:
    class OutOfTime(Exception):
        """What a time limit of the application's raises."""

    # As a signal handler does, in the middle of CoreVital's own code.
    code = compile("raise error", "corevital", "exec")
    names = {"__name__": "corevital.capture.run", "error": OutOfTime()}
    with pytest.raises(OutOfTime):
        signals.observe("hidden", exec, code, names)
    assert signals.unavailable == {}


def test_several_signals_end_for_one_reason(signals: ObservedSignals) -> None:
    signals.end("divided", "logits", "prompt")
    assert signals.unavailable == {"logits": "divided", "prompt": "divided"}


def test_nothing_is_observed_with_gradients(signals: ObservedSignals) -> None:
    seen: list[bool] = []
    with torch.enable_grad():
        signals.observe("hidden", lambda: seen.append(torch.is_grad_enabled()))
        assert torch.is_grad_enabled()
    assert seen == [False]


def test_what_is_observed_inside_is_counted_once(signals: ObservedSignals) -> None:
    def outer() -> None:
        signals.observe("prompt", time.sleep, PAUSE)
        time.sleep(PAUSE)

    started = time.perf_counter()
    signals.observe("attention", outer)
    signals.observe("logits", time.sleep, PAUSE)
    assert 3 * PAUSE <= signals.seconds <= time.perf_counter() - started


def test_time_inside_of_what_is_timed_counts_once(signals: ObservedSignals) -> None:
    signals.observe("logits", time.sleep, PAUSE)
    assert signals.seconds >= PAUSE
    before = signals.seconds
    started = time.perf_counter()
    with signals.timed():
        signals.observe("logits", time.sleep, PAUSE)
        signals.observe("hidden", time.sleep, PAUSE)
    assert 2 * PAUSE <= signals.seconds - before <= time.perf_counter() - started


def test_what_is_timed_counts_where_it_breaks_off(signals: ObservedSignals) -> None:
    def interrupted() -> None:
        time.sleep(PAUSE)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), signals.timed():
        interrupted()
    assert signals.seconds >= PAUSE
