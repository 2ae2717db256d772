"""Streams an answer from a thread, under a span of the application's own."""

from __future__ import annotations

import sys
from threading import Thread
from typing import Any

from opentelemetry import trace
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

model: Any = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer: Any = AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "What is the capital of France?"}],
    add_generation_prompt=True,
    return_tensors="pt",
    return_dict=True,
)
with trace.get_tracer("app").start_as_current_span("request"):
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    settings = {**inputs, "streamer": streamer, "max_new_tokens": 12, "do_sample": False}
    thread = Thread(target=model.generate, kwargs=settings)
    thread.start()
    print("".join(streamer))
    thread.join()
