"""What is sent of a loop."""

from __future__ import annotations

from typing import Any

import pytest

from tests.forcing import forcing
from tests.instrumentation import attributes, counted, step_indices
from tests.models import GenerativeModel, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument

# Twice 96 tokens: a loop, whatever the states are.
LOOP = [40, 41, 42] * 64
BEFORE, AFTER = list(range(50, 71)), list(range(80, 90))


def say(model: GenerativeModel, tokens: list[int], batch: int = 1) -> None:
    model.generate(
        tiny_prompt(batch),
        do_sample=False,
        max_new_tokens=len(tokens),
        logits_processor=forcing(tokens),
    )


def repetition(of: dict[str, Any]) -> dict[str, Any]:
    area = "corevital.repetition."
    return {name.removeprefix(area): v for name, v in of.items() if name.startswith(area)}


@pytest.mark.parametrize("capture", ["full", "summary", "on_risk"])
def test_a_loop_that_ended_is_described(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument, capture: str
) -> None:
    instrument(capture=capture)
    say(model, BEFORE + LOOP + AFTER)

    assert repetition(attributes(telemetry.spans()[0])) == {
        "detected": True,
        "onset_step": 21,
        "period": 3,
        "repeats": 64,
        "end_step": 21 + 192,
    }


def test_a_loop_that_goes_on_has_no_end(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    say(model, BEFORE + LOOP)

    found = repetition(attributes(telemetry.spans()[0]))
    assert found["onset_step"] == 21
    assert "end_step" not in found


def test_without_a_loop_only_that_is_said(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    say(model, BEFORE + AFTER)

    assert repetition(attributes(telemetry.spans()[0])) == {"detected": False}
    assert counted(telemetry, "corevital.health.flag.count", flag="repetition") == 0


def test_each_sequence_with_a_loop_is_counted_once(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    say(model, LOOP + AFTER + BEFORE + LOOP, batch=2)

    assert counted(telemetry, "corevital.health.flag.count", flag="repetition") == 2


@pytest.mark.parametrize("onset", [21, 22, 23])
def test_the_onset_has_an_event_of_its_own(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument, onset: int
) -> None:
    # More steps than a span has room for, one as remarkable as the other.
    instrument(high_entropy_bits=0.0001)
    said = list(range(50, 50 + onset)) + LOOP * 2
    say(model, said)

    chosen = step_indices(telemetry.spans()[0])
    assert len(chosen) < len(said) / 3
    assert onset in chosen
