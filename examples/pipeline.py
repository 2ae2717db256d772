"""A pipeline that answers two questions in one batch, and a function that reads what was found.

    python examples/pipeline.py [MODEL]

One span stands for the call of ``generate``, with a child span for each of its sequences; both
belong to the program's own span. They go to OTEL_EXPORTER_OTLP_ENDPOINT, by default
http://localhost:4317, over gRPC. MODEL is a model of the Hugging Face Hub or a local folder; the
environment variable MODEL names it too.
"""

import os
import sys

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from transformers import AutoTokenizer, pipeline

from corevital import CoreVitalInstrumentor, Observed

DEFAULT_MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
MODEL = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL

QUESTIONS = ("What is the capital of France?", "Name three planets that have rings.")


def show(observed: Observed) -> None:
    """Print what CoreVital found in one sequence; called before the sequence's span ends."""
    record, assessment = observed.record, observed.assessment
    if assessment is None or record.logits is None:
        print(f"Not observed: {record.capture.logits.reason}")
        return
    print(
        f"{record.steps} tokens, mean entropy {record.logits.entropy.mean():.2f} bit, "
        f"risk {assessment.risk.score:.2f} ({assessment.risk.level}), "
        f"trace {observed.trace_id:032x}"
    )


def main() -> None:
    """Answer the questions inside a span of the program's own."""
    provider = TracerProvider(resource=Resource.create({"service.name": "pipeline"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    CoreVitalInstrumentor().instrument(tracer_provider=provider, on_generation=show)

    # A decoder-only model continues the end of its input, so padding has to come before it.
    tokenizer = AutoTokenizer.from_pretrained(MODEL, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    generator = pipeline(
        "text-generation", model=MODEL, tokenizer=tokenizer, batch_size=len(QUESTIONS)
    )
    chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
    with provider.get_tracer(__name__).start_as_current_span("answer questions"):
        answers = generator(chats, max_new_tokens=24, do_sample=False)
    for answer in answers:
        print(answer[0]["generated_text"][-1]["content"])
    provider.shutdown()


if __name__ == "__main__":
    main()
