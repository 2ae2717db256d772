"""What `corevital.intervene` takes, and where it holds."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import corevital
from corevital import intervention
from corevital.intervention import Condition, Intervention, chosen_intervention, mark_instrumented


@pytest.fixture(autouse=True)
def instrumented() -> Iterator[None]:
    """As if generations were instrumented."""
    mark_instrumented(True)
    yield
    mark_instrumented(False)


def test_outside_of_any_block_nothing_is_chosen() -> None:
    assert chosen_intervention() is None


@pytest.mark.parametrize(
    ("on", "conditions"),
    [
        ("repetition", (Condition.REPETITION,)),
        (["risk", "non_finite"], (Condition.RISK, Condition.NON_FINITE)),
        (("risk", "risk"), (Condition.RISK,)),
        ((), ()),
    ],
)
def test_a_block_chooses_its_conditions(on: Any, conditions: tuple[Condition, ...]) -> None:
    with corevital.intervene(on, threshold=0.5, raises=True):
        assert chosen_intervention() == Intervention(conditions, 0.5, True)
    assert chosen_intervention() is None


def test_by_default_a_risk_of_nine_tenths_shortens_the_result() -> None:
    with corevital.intervene("risk"):
        assert chosen_intervention() == Intervention((Condition.RISK,), 0.9, False)


def test_the_innermost_block_holds() -> None:
    with corevital.intervene("risk"):
        with corevital.intervene(on=()):
            assert chosen_intervention() == Intervention(())
        with corevital.intervene("repetition"):
            assert chosen_intervention() == Intervention((Condition.REPETITION,))
        assert chosen_intervention() == Intervention((Condition.RISK,))


def test_a_block_ends_with_an_exception() -> None:
    with pytest.raises(KeyboardInterrupt), corevital.intervene("risk"):
        raise KeyboardInterrupt
    assert chosen_intervention() is None


def test_a_function_can_be_decorated() -> None:
    @corevital.intervene("non_finite")
    def conditions() -> Any:
        chosen = chosen_intervention()
        return None if chosen is None else chosen.on

    assert [conditions(), conditions()] == [(Condition.NON_FINITE,)] * 2
    assert chosen_intervention() is None


def test_a_block_holds_in_its_own_thread_only() -> None:
    seen: list[Any] = []
    with corevital.intervene("risk"):
        thread = threading.Thread(target=lambda: seen.append(chosen_intervention()))
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("on", ["loops", "", ["risk", "loops"], [1], None, 3])
def test_conditions_that_do_not_exist_are_refused_at_the_call(on: Any) -> None:
    with pytest.raises(ValueError, match="accepted are repetition, non_finite, risk") as raised:
        corevital.intervene(on)
    assert f"on={on!r}" in str(raised.value)


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan"), "high", None])
def test_thresholds_outside_of_the_score_are_refused_at_the_call(threshold: Any) -> None:
    with pytest.raises(ValueError, match="accepted is a number above 0 and at most 1") as raised:
        corevital.intervene("risk", threshold=threshold)
    assert f"threshold={threshold!r}" in str(raised.value)


def test_without_instrumentation_one_warning_says_that_nothing_is_stopped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mark_instrumented(False)
    monkeypatch.setattr(intervention._Process, "warned", False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with corevital.intervene(on=()):
            assert caught == []
        for _ in range(2):
            with corevital.intervene("risk"):
                pass
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert "CoreVitalInstrumentor().instrument()" in str(warning.message)
    assert warning.filename == __file__


def test_the_exception_says_why_and_can_be_pickled() -> None:
    stopped = corevital.GenerationStopped("repetition", 41, torch.tensor([[1, 2]]))

    again = pickle.loads(pickle.dumps(stopped))

    assert str(again) == "the generation was stopped after step 41: repetition"
    assert (again.reason, again.step, again.input_ids.tolist()) == ("repetition", 41, [[1, 2]])


def test_a_block_needs_neither_torch_nor_opentelemetry() -> None:
    program = "import sys, corevital; corevital.intervene('risk'); print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    ).stdout.split()
    assert "corevital.intervention" in loaded
    assert not {"torch", "transformers", "opentelemetry", "pydantic"} & set(loaded)
