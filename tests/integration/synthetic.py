"""Traces with the attributes that a test wants, and identifiers that are the same in every run."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.trace import Status, StatusCode, Tracer


class _SeededIds(IdGenerator):
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def generate_span_id(self) -> int:
        return self._random.randrange(1, 2**64)

    def generate_trace_id(self) -> int:
        return self._random.randrange(1, 2**128)


@contextmanager
def sending(endpoint: str, service: str, *, seed: int = 0) -> Iterator[Tracer]:
    """A tracer whose spans have all arrived at the end of the block."""
    provider = TracerProvider(
        resource=Resource({"service.name": service}),
        id_generator=_SeededIds(seed),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=True)
    provider.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=20_000))
    yield provider.get_tracer("synthetic")
    assert provider.force_flush()
    provider.shutdown()


def trace(
    tracer: Tracer, attributes: Mapping[str, Any], *, fails: bool = False, spans: int = 3
) -> str:
    """Send an application's span with a generation inside, and return the trace's id.

    ``spans`` counts the generation, which has ``attributes``.
    """
    with tracer.start_as_current_span("request") as request:
        for _ in range(spans - 2):
            tracer.start_span("retrieve").end()
        generation = tracer.start_span("chat model", attributes=dict(attributes))
        if fails:
            generation.set_status(Status(StatusCode.ERROR))
        generation.end()
    return f"{request.get_span_context().trace_id:032x}"
