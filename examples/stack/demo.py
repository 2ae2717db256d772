"""Generates all the time, well and badly, so that the dashboards have something to show.

    python examples/stack/demo.py [MODEL] [--rounds 1]

Two services, `chat` and `batch`, answer questions; some answers are sampled so hot that they make
no sense, some run into a loop. Once in a while the weights of one layer are damaged, and repaired
again. Everything goes to OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4317, over gRPC.
MODEL is a model of the Hugging Face Hub or a local folder; the environment variable MODEL names it
too. Without ``--rounds`` it ends when it is interrupted.
"""

import argparse
import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from transformers import AutoModelForCausalLM, AutoTokenizer

from corevital import CoreVitalInstrumentor

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"
QUESTIONS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Name three uses of a paper clip.",
    "Write two lines about the sea.",
)
LOOP = "The sea, the sea, the sea, the sea, the sea, the sea, the sea,"
# Odd, so that it happens to both services.
LOOP_EVERY, DAMAGED_EVERY = 7, 21


def providers(service: str) -> dict[str, Any]:
    """What `instrument` takes, for the telemetry of one service."""
    resource = Resource.create({"service.name": service})
    tracers, loggers = TracerProvider(resource=resource), LoggerProvider(resource=resource)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    loggers.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))
    reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    meters = MeterProvider([reader], resource=resource)
    return {"tracer_provider": tracers, "logger_provider": loggers, "meter_provider": meters}


@contextmanager
def damaged(model: Any) -> Iterator[None]:
    """A layer in the middle of the model has an infinite weight inside the block."""
    layers = model.get_decoder().layers
    weight = layers[len(layers) // 2].mlp.down_proj.weight
    kept = weight.data[0, 0].clone()
    weight.data[0, 0] = torch.inf
    try:
        yield
    finally:
        weight.data[0, 0] = kept


def generate(model: Any, tokenizer: Any, turn: int) -> None:
    """A good answer and a senseless one, and sometimes a loop or a broken one."""
    question = [{"role": "user", "content": QUESTIONS[turn % len(QUESTIONS)]}]
    chat = tokenizer.apply_chat_template(
        question, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model.generate(**chat, max_new_tokens=32, do_sample=True, temperature=0.7)
    model.generate(**chat, max_new_tokens=16, do_sample=True, temperature=5.0)
    if turn % LOOP_EVERY == 0:
        loop = tokenizer(LOOP, return_tensors="pt")
        model.generate(**loop, max_new_tokens=128, do_sample=False)
    if turn % DAMAGED_EVERY == 0:
        with damaged(model):
            model.generate(**chat, max_new_tokens=8, do_sample=False)


def main() -> None:
    """Generate until interrupted, or for some rounds."""
    parser = argparse.ArgumentParser(description="Generate for the dashboards.")
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL", DEFAULT_MODEL))
    parser.add_argument("--rounds", type=int)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    model = AutoModelForCausalLM.from_pretrained(arguments.model)
    services = [providers(name) for name in ("chat", "batch")]
    instrumentor = CoreVitalInstrumentor()
    rounds = itertools.count() if arguments.rounds is None else range(arguments.rounds)
    try:
        for turn in rounds:
            # An application is one service; this one plays two, in turn.
            instrumentor.instrument(**services[turn % len(services)])
            generate(model, tokenizer, turn)
            instrumentor.uninstrument()
    finally:
        for service in services:
            for provider in service.values():
                provider.shutdown()


if __name__ == "__main__":
    main()
