"""What a span tells of an exception, whatever the exception is."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN, get_current_span
from transformers import LogitsProcessorList

from corevital.telemetry.request import MOST_MESSAGE_BYTES, failure_of
from tests.instrumentation import attributes
from tests.models import GenerativeModel
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import greedy


class Speechless(Exception):
    def __str__(self) -> str:
        raise ValueError("no words")


class Raises:
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __call__(self, *_: Any) -> Any:
        raise self.error


@pytest.mark.parametrize("message", ["", "short", "x" * MOST_MESSAGE_BYTES])
def test_a_message_that_is_short_is_told_whole(message: str) -> None:
    assert failure_of(ValueError(message)).message == message


@pytest.mark.parametrize("character", ["x", "é", "\U0001f600"])
def test_a_long_message_ends_after_so_many_bytes(character: str) -> None:
    message = failure_of(ValueError(character * 5000)).message

    assert message is not None
    assert message.removesuffix("...") == character * message.count(character)
    assert MOST_MESSAGE_BYTES - 4 < len(message.encode()) <= MOST_MESSAGE_BYTES


def test_an_exception_that_cannot_say_what_it_is_passes_and_ends_its_span(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    error = Speechless()
    with pytest.raises(Speechless) as raised:
        greedy(model, logits_processor=LogitsProcessorList([Raises(error)]))

    (span,) = telemetry.spans()
    assert raised.value is error
    assert attributes(span)["error.type"] == "Speechless"
    assert get_current_span() is INVALID_SPAN


def test_the_exception_itself_keeps_its_message(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with pytest.raises(ValueError, match=r"^x{5000}$"):
        greedy(model, logits_processor=LogitsProcessorList([Raises(ValueError("x" * 5000))]))

    (span,) = telemetry.spans()
    assert span.status.description == "x" * (MOST_MESSAGE_BYTES - 3) + "..."
