"""Generations of every kind, by two models and for two services, sent through a real Collector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

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
from transformers import LogitsProcessor, LogitsProcessorList

from corevital import CoreVitalInstrumentor
from tests.forcing import forcing
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel

SERVICES: Final = ("chat-service", "batch-service")
LOOP: Final = "no no no no no no no no no no no no no no no no"
Generate = Callable[[], object]


class _Raises(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        raise ConnectionError("lost")


class Fleet:
    """Two services; each call of ``round`` lets both generate, and sends what they have."""

    def __init__(self, endpoint: str, smollm2: LoadedModel) -> None:
        self._pipelines = {name: _pipelines(name, endpoint) for name in SERVICES}
        self._calls = list(_calls(smollm2))
        self.models = (Path(str(smollm2.model.name_or_path)).name, "LlamaForCausalLM")

    def round(self) -> None:
        """Every kind of generation once for each service."""
        for pipelines in self._pipelines.values():
            instrumentor = CoreVitalInstrumentor()
            instrumentor.instrument(**pipelines, step_events="both", on_generation=_fails)
            try:
                for call in self._calls:
                    call()
            finally:
                instrumentor.uninstrument()
            for provider in pipelines.values():
                assert provider.force_flush()

    def shutdown(self) -> None:
        """End every pipeline."""
        for pipelines in self._pipelines.values():
            for provider in pipelines.values():
                provider.shutdown()


@contextmanager
def fleet(endpoint: str, smollm2: LoadedModel) -> Iterator[Fleet]:
    """A fleet that sends OTLP over gRPC to ``endpoint``."""
    found = Fleet(endpoint, smollm2)
    try:
        yield found
    finally:
        found.shutdown()


def _pipelines(service: str, endpoint: str) -> dict[str, Any]:
    resource = Resource({"service.name": service})
    tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
    tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, insecure=True)))
    loggers = LoggerProvider(resource=resource, shutdown_on_exit=False)
    loggers.add_log_record_processor(
        BatchLogRecordProcessor(OTLPLogExporter(endpoint, insecure=True))
    )
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint, insecure=True), export_interval_millis=3_600_000
    )
    meters = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    return {"tracer_provider": tracers, "logger_provider": loggers, "meter_provider": meters}


def _fails(*_: object) -> None:
    """A listener that fails, which CoreVital counts as a failure."""
    raise RuntimeError("the listener fails")


def _calls(smollm2: LoadedModel) -> Iterator[Generate]:
    model = smollm2.model
    chat = smollm2.chat("What is the capital of France?")
    loop = smollm2.tokenizer(LOOP, return_tensors="pt")
    healthy, broken = tiny_model("llama"), _with_infinite_weight(tiny_model("llama", seed=1))
    prompt = tiny_prompt()
    raising = LogitsProcessorList([_Raises()])
    yield lambda: model.generate(**chat, max_new_tokens=8, do_sample=False)
    yield lambda: model.generate(**loop, max_new_tokens=24, do_sample=False)
    yield lambda: healthy.generate(prompt, max_new_tokens=24, do_sample=False)
    # A processor counts its steps, so every call has one of its own.
    yield lambda: healthy.generate(
        prompt, max_new_tokens=200, do_sample=False, logits_processor=forcing([5] * 200)
    )
    yield lambda: broken.generate(prompt, max_new_tokens=8, do_sample=False)
    yield lambda: _raising(healthy, prompt, raising)


def _raising(
    model: GenerativeModel, prompt: torch.Tensor, processors: LogitsProcessorList
) -> object:
    try:
        return model.generate(prompt, max_new_tokens=4, logits_processor=processors)
    except ConnectionError:
        return None


def _with_infinite_weight(model: GenerativeModel) -> GenerativeModel:
    model.get_parameter("model.layers.1.mlp.down_proj.weight").data[0, 0] = torch.inf
    return model
