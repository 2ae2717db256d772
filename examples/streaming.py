"""Text as it comes, from a generation in another thread that belongs to the caller's trace.

    python examples/streaming.py [MODEL]

The current span is kept in a context variable, and a new thread starts without any. So the thread
runs in a copy of the caller's context; without it, the generation would start a trace of its own.
Spans go to OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4317, over gRPC. MODEL is a
model of the Hugging Face Hub or a local folder; the environment variable MODEL names it too.
"""

import os
import sys
from collections.abc import Iterator
from contextvars import copy_context
from functools import partial
from threading import Thread
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer

from corevital import CoreVitalInstrumentor

DEFAULT_MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
MODEL = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL

LONGEST_WAIT_SECONDS = 60.0


def stream(model: Any, tokenizer: Any, question: str) -> Iterator[str]:
    """Yield the answer piece by piece while a thread generates it."""
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    # Nobody ends the stream when generate fails, hence the longest wait for its next piece.
    streamer = TextIteratorStreamer(
        tokenizer, skip_prompt=True, timeout=LONGEST_WAIT_SECONDS, skip_special_tokens=True
    )
    generate = partial(
        model.generate, **inputs, streamer=streamer, max_new_tokens=24, do_sample=False
    )
    thread = Thread(target=copy_context().run, args=(generate,))
    thread.start()
    yield from streamer
    # The last piece comes before generate returns and its span ends.
    thread.join()


def main() -> None:
    """Stream one answer inside a span of the program's own."""
    provider = TracerProvider(resource=Resource.create({"service.name": "streaming"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    CoreVitalInstrumentor().instrument(tracer_provider=provider)

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    with provider.get_tracer(__name__).start_as_current_span("answer a question"):
        for text in stream(model, tokenizer, "What is the capital of France?"):
            print(text, end="", flush=True)
    print()
    provider.shutdown()


if __name__ == "__main__":
    main()
