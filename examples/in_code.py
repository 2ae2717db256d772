"""CoreVital switched on in code, with providers for traces, metrics and logs.

    python examples/in_code.py [MODEL]

sends all three to OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4317, over gRPC. MODEL
is a model of the Hugging Face Hub or a local folder; the environment variable MODEL names it too.
"""

import os
import sys
from typing import Any

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

DEFAULT_MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
MODEL = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL


def main() -> None:
    """Continue one text with CoreVital switched on."""
    resource = Resource.create({"service.name": "in-code"})
    tracer_provider = TracerProvider(resource=resource)
    tracer_provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    metric_reader = PeriodicExportingMetricReader(OTLPMetricExporter())
    meter_provider = MeterProvider([metric_reader], resource=resource)
    logger_provider = LoggerProvider(resource=resource)
    logger_provider.add_log_record_processor(BatchLogRecordProcessor(OTLPLogExporter()))

    # Each keyword is optional: without a provider, the global one is used. Settings are keywords
    # too, and override their environment variables.
    instrumentor = CoreVitalInstrumentor()
    instrumentor.instrument(
        tracer_provider=tracer_provider,
        meter_provider=meter_provider,
        logger_provider=logger_provider,
        step_events="both",
    )
    try:
        print(complete("The capital of France is"))
    finally:
        instrumentor.uninstrument()
        # What is still waiting to be sent is sent now.
        tracer_provider.shutdown()
        meter_provider.shutdown()
        logger_provider.shutdown()


def complete(text: str) -> str:
    """Continue a text, as a program does that knows nothing of CoreVital."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model: Any = AutoModelForCausalLM.from_pretrained(MODEL)
    inputs = tokenizer(text, return_tensors="pt")
    sequences = model.generate(**inputs, max_new_tokens=24, do_sample=False)
    return str(tokenizer.decode(sequences[0], skip_special_tokens=True))


if __name__ == "__main__":
    main()
