"""What ``transformers serve`` does in threads of its own belongs to the request it is done for."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import threading
from typing import Any

import pytest
from opentelemetry.trace import INVALID_SPAN, Span, get_current_span

from tests.instrumentation import identity, instrumented, parent_identity
from tests.models import tiny_model, tiny_prompt
from tests.providers import Telemetry

MODULE = "transformers.cli.serving.utils"
MODULE_4 = "transformers.commands.serving"


def importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


current = pytest.mark.skipif(not importable(MODULE), reason="another release has it elsewhere")
early = pytest.mark.skipif(not importable(MODULE_4), reason="another release has it elsewhere")


@pytest.fixture(scope="module")
def serving() -> Any:
    return importlib.import_module(MODULE)


@current
def test_submitted_calls_see_the_span_of_who_submitted_them(
    serving: Any, telemetry: Telemetry
) -> None:
    tracer = telemetry.tracer_provider.get_tracer("app")
    with instrumented(telemetry):
        thread = serving.InferenceThread()
        with tracer.start_as_current_span("one") as one:
            seen_one = thread.submit(get_current_span).result()
        with tracer.start_as_current_span("two") as two:
            seen_two = thread.submit(get_current_span).result()
        seen_later = thread.submit(get_current_span).result()

    assert (seen_one, seen_two, seen_later) == (one, two, INVALID_SPAN)


@current
def test_awaited_calls_return_and_raise_as_ever(serving: Any, telemetry: Telemetry) -> None:
    def fail(message: str) -> None:
        raise KeyError(message)

    async def call() -> Span:
        with pytest.raises(KeyError, match="missing"):
            await thread.async_submit(fail, message="missing")
        seen = await thread.async_submit(lambda *, of: of(), of=get_current_span)
        assert isinstance(seen, Span)
        return seen

    tracer = telemetry.tracer_provider.get_tracer("app")
    with instrumented(telemetry), tracer.start_as_current_span("request") as request:
        thread = serving.InferenceThread()
        assert asyncio.run(call()) is request


@current
def test_a_generation_is_part_of_the_request(serving: Any, telemetry: Telemetry) -> None:
    model = tiny_model("llama")
    tracer = telemetry.tracer_provider.get_tracer("app")
    with instrumented(telemetry), tracer.start_as_current_span("request"):
        thread = serving.InferenceThread()
        thread.submit(model.generate, tiny_prompt(), max_new_tokens=2).result()

    generation, request = telemetry.spans()
    assert parent_identity(generation) == identity(request)


@current
def test_it_is_as_ever_once_switched_off(serving: Any, telemetry: Telemetry) -> None:
    own = serving.InferenceThread.submit
    with instrumented(telemetry):
        assert serving.InferenceThread.submit is not own
    assert serving.InferenceThread.submit is own


@early
def test_threads_of_4_57_see_the_span_of_who_makes_them(telemetry: Telemetry) -> None:
    serving = importlib.import_module(MODULE_4)
    seen: list[Span] = []
    tracer = telemetry.tracer_provider.get_tracer("app")
    with instrumented(telemetry), tracer.start_as_current_span("request") as request:
        thread = serving.Thread(target=lambda: seen.append(get_current_span()))
        thread.start()
        thread.join()

    assert seen == [request]
    assert serving.Thread is threading.Thread
