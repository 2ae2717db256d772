"""A real model that is caught in a loop is stopped, and its span says so."""

from __future__ import annotations

import threading

import torch
from transformers import TextIteratorStreamer

import corevital
from tests.instrumentation import attributes, counted, instrumented
from tests.providers import Telemetry
from tests.smollm2 import LoadedModel

PROMPT = "We went to the beach and"
LIMIT = 110


def test_a_loop_ends_and_everything_before_it_is_what_it_was(
    smollm2: LoadedModel, telemetry: Telemetry
) -> None:
    inputs = smollm2.tokenizer(PROMPT, return_tensors="pt")
    prompt = inputs["input_ids"].shape[1]
    arguments = {**inputs, "do_sample": False, "max_new_tokens": LIMIT}
    plain = smollm2.model.generate(**arguments)
    streamer = TextIteratorStreamer(smollm2.tokenizer, skip_prompt=True)
    results: list[torch.Tensor] = []

    def generate() -> None:
        with corevital.intervene(on=["repetition", "non_finite", "risk"], threshold=0.99):
            results.append(smollm2.model.generate(**arguments, streamer=streamer))

    with instrumented(telemetry):
        thread = threading.Thread(target=generate)
        thread.start()
        streamed = "".join(streamer)
        thread.join()

    (result,) = results
    steps = result.shape[1] - prompt
    assert plain.shape[1] == prompt + LIMIT
    # A loop counts from 96 tokens on.
    assert 96 <= steps < LIMIT
    assert torch.equal(result, plain[:, : result.shape[1]])
    assert streamed == smollm2.tokenizer.decode(result[0, prompt:])
    (span,) = telemetry.spans()
    written = attributes(span)
    assert written["corevital.intervention.reason"] == "repetition"
    assert written["corevital.intervention.step"] == steps - 1
    assert written["corevital.intervention.conditions"] == ("repetition", "non_finite", "risk")
    assert "corevital.intervention.unavailable" not in written
    assert written["corevital.repetition.onset_step"] + 96 == steps
    assert written["gen_ai.response.finish_reasons"] == ("stop",)
    assert written["gen_ai.usage.output_tokens"] == steps
    assert counted(telemetry, "corevital.intervention.count") == 1
