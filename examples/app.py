"""A program that knows nothing of CoreVital or OpenTelemetry, instrumented from outside.

    opentelemetry-instrument --service_name my-app python examples/app.py [MODEL]

sends traces, metrics and logs to OTEL_EXPORTER_OTLP_ENDPOINT, by default http://localhost:4317.
Without a backend, look at the span itself:

    opentelemetry-instrument --traces_exporter console --metrics_exporter none \
        --logs_exporter none python examples/app.py [MODEL]

``opentelemetry-instrument`` needs the package ``opentelemetry-distro``. MODEL is a model of the
Hugging Face Hub or a local folder; the environment variable MODEL names it too.
"""

import os
import sys

from transformers import pipeline

DEFAULT_MODEL = os.environ.get("MODEL", "HuggingFaceTB/SmolLM2-135M-Instruct")
MODEL = sys.argv[1] if len(sys.argv) > 1 else DEFAULT_MODEL

generator = pipeline("text-generation", model=MODEL)
messages = [{"role": "user", "content": "What is the capital of France?"}]
answer = generator(messages, max_new_tokens=24, do_sample=False)
print(answer[0]["generated_text"][-1]["content"])
