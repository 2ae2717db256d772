"""Fixtures of the tests that look at what CoreVital sends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Protocol

import pytest

from corevital import CoreVitalInstrumentor
from tests.instrumentation import instrumented
from tests.models import GenerativeModel, tiny_model
from tests.providers import Telemetry


class Instrument(Protocol):
    """Instruments until the end of the test."""

    def __call__(self, **keywords: Any) -> CoreVitalInstrumentor: ...


@pytest.fixture
def instrument(telemetry: Telemetry) -> Iterator[Instrument]:
    with ExitStack() as stack:

        def start(**keywords: Any) -> CoreVitalInstrumentor:
            return stack.enter_context(instrumented(telemetry, **keywords))

        yield start


@pytest.fixture
def model() -> GenerativeModel:
    return tiny_model("llama")
