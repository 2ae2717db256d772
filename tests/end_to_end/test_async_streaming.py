"""Answers that an asynchronous application streams, each generated in a thread."""

from __future__ import annotations

import asyncio
from typing import Any

from transformers import AsyncTextIteratorStreamer

from tests.instrumentation import attributes, instrumented
from tests.providers import Telemetry
from tests.smollm2 import LoadedModel

QUESTIONS = ("What is the capital of France?", "Name three colours, please.")


async def streamed(loaded: LoadedModel, question: str) -> str:
    """The text of an answer, as a web application would send it on."""
    streamer = AsyncTextIteratorStreamer(loaded.tokenizer, skip_prompt=True)
    generating = asyncio.create_task(
        asyncio.to_thread(loaded.model.generate, **arguments(loaded, question), streamer=streamer)
    )
    text = "".join([part async for part in streamer])
    await generating
    return text


def arguments(loaded: LoadedModel, question: str) -> dict[str, Any]:
    return {**loaded.chat(question), "do_sample": False, "max_new_tokens": 12}


def test_answers_streamed_at_once_are_the_plain_ones_and_children_of_their_requests(
    smollm2: LoadedModel, telemetry: Telemetry
) -> None:
    plain = []
    for question in QUESTIONS:
        given = arguments(smollm2, question)
        tokens = smollm2.model.generate(**given)[0, given["input_ids"].shape[1] :]
        plain.append((smollm2.tokenizer.decode(tokens), len(tokens)))
    tracer = telemetry.tracer_provider.get_tracer("app")

    async def request(question: str) -> str:
        with tracer.start_as_current_span(question):
            return await streamed(smollm2, question)

    async def requests() -> list[str]:
        return await asyncio.gather(*map(request, QUESTIONS))

    with instrumented(telemetry):
        answers = asyncio.run(requests())

    assert answers == [text for text, _ in plain]
    spans = {span.name: span for span in telemetry.spans() if span.name in QUESTIONS}
    generations = {
        span.parent.span_id: attributes(span)
        for span in telemetry.spans()
        if span.parent is not None and span.name not in QUESTIONS
    }
    assert len(generations) == len(QUESTIONS)
    for question, (_, tokens) in zip(QUESTIONS, plain, strict=True):
        written = generations[spans[question].context.span_id]
        assert written["gen_ai.usage.output_tokens"] == tokens
        assert written["corevital.capture.logits"] == "captured"
