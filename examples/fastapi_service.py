"""A FastAPI service; each request's span is the parent of the generation that answers it.

    python examples/fastapi_service.py [MODEL] [--port 8000]
    curl --json '{"question": "What is the capital of France?"}' http://127.0.0.1:8000/answer

Needs the packages ``fastapi``, ``uvicorn`` and ``opentelemetry-instrumentation-fastapi``. Spans go
to OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4317, over gRPC. MODEL is a model of the
Hugging Face Hub or a local folder; the environment variable MODEL names it too.
"""

import argparse
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from pydantic import BaseModel
from transformers import pipeline

from corevital import CoreVitalInstrumentor

DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Question(BaseModel):
    """The body of a request."""

    question: str
    max_new_tokens: int = 24


class Answer(BaseModel):
    """The body of a response."""

    answer: str


def create_app(model: str) -> FastAPI:
    """Load the model, and make the service with everything that happens in it traced."""
    provider = TracerProvider(resource=Resource.create({"service.name": "fastapi-service"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    CoreVitalInstrumentor().instrument(tracer_provider=provider)
    generator = pipeline("text-generation", model=model)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        provider.shutdown()

    app = FastAPI(lifespan=lifespan)

    # FastAPI runs a function that is not async in a worker thread, in a copy of the request's
    # context, so the request's span is current there. The same goes for asyncio.to_thread in an
    # async one, but not for an event loop's run_in_executor: give that copy_context().run.
    @app.post("/answer")
    def answer(question: Question) -> Answer:
        messages = [{"role": "user", "content": question.question}]
        result = generator(messages, max_new_tokens=question.max_new_tokens, do_sample=False)
        return Answer(answer=result[0]["generated_text"][-1]["content"])

    # Without the spans of ASGI's own messages, of which every response has two.
    FastAPIInstrumentor.instrument_app(
        app, tracer_provider=provider, exclude_spans=["receive", "send"]
    )
    return app


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description="Answer questions over HTTP.")
    parser.add_argument("model", nargs="?", default=os.environ.get("MODEL", DEFAULT_MODEL))
    parser.add_argument("--port", type=int, default=8000)
    arguments = parser.parse_args()
    uvicorn.run(create_app(arguments.model), host="127.0.0.1", port=arguments.port)


if __name__ == "__main__":
    main()
