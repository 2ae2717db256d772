"""What a generation weighs on the wire: bytes of OTLP, as the exporters of the SDK send it.

    python -m benchmarks.wire [--model PATH] [--tokens 50 500] [--write]

Each generation is exported by itself, over HTTP, once plain and once compressed, to a receiver that
counts bytes. Those of the resource and the scope, which all that is exported together shares, are
counted apart; so are metrics, which are sent once an interval, whatever was generated. ``--write``
replaces the committed results. A last table says how many attributes, events, log records and
series of metrics there are.

Exits with status 1 where the span and the log record of a generation without step events are not
under 4 kB together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any, Final

import torch
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from rich.console import Console
from rich.progress import track
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.counting_receiver import (
    LOGS,
    METRICS,
    TRACES,
    Counter,
    Size,
    counting_receiver,
)
from benchmarks.markdown import table
from benchmarks.volume import TOKENS, Volume, counts, volumes
from corevital import CoreVitalInstrumentor
from corevital.record import CaptureMode
from corevital.settings import StepEvents
from corevital.telemetry.size_limit import LIMIT
from scripts.smollm2 import safetensors_folder

RESULTS: Final = Path(__file__).parent / "results" / "wire.md"
PROMPT: Final = "Write a short story about a lighthouse keeper who finds a message in a bottle."
NEVER_MILLIS: Final = 3_600_000
Generate = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Weight:
    """Bytes of one generation, and those of one export of all its metrics."""

    spans: Size
    logs: Size
    metrics: Size

    @property
    def generation(self) -> int:
        """Bytes, uncompressed, of the spans and log records."""
        return self.spans.content + self.logs.content

    @property
    def alone(self) -> int:
        """Bytes as sent, where a request has nothing but this generation."""
        return self.spans.body + self.logs.body


@dataclass(frozen=True, slots=True)
class Row:
    """One generation of ``tokens`` tokens, sent in one way, uncompressed and compressed."""

    capture: CaptureMode
    step_events: StepEvents
    tokens: int
    plain: Weight
    gzip: Weight


@dataclass(frozen=True, slots=True)
class Providers:
    """What everything is written to."""

    tracer: TracerProvider
    meter: MeterProvider
    logger: LoggerProvider

    def flush(self) -> None:
        """Send what there is."""
        for provider in (self.tracer, self.meter, self.logger):
            provider.force_flush()

    def shutdown(self) -> None:
        """Send what there is, and end."""
        for provider in (self.tracer, self.meter, self.logger):
            provider.shutdown()


def providers(receivers: dict[Compression, str]) -> Providers:
    """Providers that send everything to every endpoint, with its compression."""
    resource = Resource.create({"service.name": "wire-benchmark"})
    readers = [
        PeriodicExportingMetricReader(
            OTLPMetricExporter(endpoint + METRICS, compression=compression),
            export_interval_millis=NEVER_MILLIS,
        )
        for compression, endpoint in receivers.items()
    ]
    made = Providers(
        TracerProvider(resource=resource, shutdown_on_exit=False),
        MeterProvider(readers, resource=resource, shutdown_on_exit=False),
        LoggerProvider(resource=resource, shutdown_on_exit=False),
    )
    for compression, endpoint in receivers.items():
        spans = OTLPSpanExporter(endpoint + TRACES, compression=compression)
        logs = OTLPLogExporter(endpoint + LOGS, compression=compression)
        made.tracer.add_span_processor(
            BatchSpanProcessor(spans, schedule_delay_millis=NEVER_MILLIS)
        )
        made.logger.add_log_record_processor(
            BatchLogRecordProcessor(logs, schedule_delay_millis=NEVER_MILLIS)
        )
    return made


@contextmanager
def weighing(**settings: Any) -> Iterator[Callable[[Callable[[], object]], tuple[Weight, Weight]]]:
    """Instrument inside the block; gives a function that weighs what a call sends.

    That function returns the bytes without compression and with gzip.
    """
    with counting_receiver() as plain, counting_receiver() as gzip:
        receivers = {
            Compression.NoCompression: plain.endpoint,
            Compression.Gzip: gzip.endpoint,
        }
        everything = providers(receivers)
        instrumentor = CoreVitalInstrumentor()
        instrumentor.instrument(
            tracer_provider=everything.tracer,
            meter_provider=everything.meter,
            logger_provider=everything.logger,
            **settings,
        )

        def weigh(call: Callable[[], object]) -> tuple[Weight, Weight]:
            everything.flush()
            plain.take()
            gzip.take()
            call()
            everything.flush()
            return _weight(plain), _weight(gzip)

        try:
            yield weigh
        finally:
            instrumentor.uninstrument()
            everything.shutdown()


def _weight(counted: Counter) -> Weight:
    sizes = counted.take()
    return Weight(*(sizes.get(path, Size()) for path in (TRACES, LOGS, METRICS)))


def ways() -> list[tuple[CaptureMode, StepEvents]]:
    """Every capture mode with every place of step events; without capture there are none."""
    return [
        (capture, events)
        for capture, events in product(CaptureMode, StepEvents)
        if capture is not CaptureMode.OFF or events is StepEvents.NONE
    ]


def measure(generate: Generate, lengths: Sequence[int]) -> Iterator[Row]:
    """One row for each way and length; ``generate`` takes the number of new tokens."""
    for capture, events in ways():
        with weighing(capture=capture, step_events=events) as weigh:
            for tokens in lengths:
                plain, gzip = weigh(partial(generate, tokens))
                yield Row(capture, events, tokens, plain, gzip)


def too_heavy(rows: Sequence[Row]) -> list[Row]:
    """Generations without step events that are not under the limit."""
    return [
        row for row in rows if row.step_events is StepEvents.NONE and row.plain.generation >= LIMIT
    ]


def generations(rows: Sequence[Row]) -> str:
    """The table of spans and logs."""
    header = (
        "Capture, step events",
        "Tokens",
        "Span",
        "Log records",
        "Together",
        "A token",
        "Alone",
        "Alone, gzip",
        "gzip, a token",
    )
    body = [
        [
            f"`{row.capture}`, `{row.step_events}`",
            *(
                f"{value:.0f}"
                for value in (
                    row.tokens,
                    row.plain.spans.content,
                    row.plain.logs.content,
                    row.plain.generation,
                    row.plain.generation / row.tokens,
                    row.plain.alone,
                    row.gzip.alone,
                    row.gzip.alone / row.tokens,
                )
            ),
        ]
        for row in rows
    ]
    return table(header, body)


def metrics(rows: Sequence[Row]) -> str:
    """The table of metrics: where step events go makes no difference to them."""
    chosen = {row.capture: row for row in rows if row.step_events is StepEvents.NONE}
    body = [
        [f"`{capture}`", str(row.plain.metrics.body), str(row.gzip.metrics.body)]
        for capture, row in chosen.items()
    ]
    return table(("Capture", "Bytes an export", "gzip"), body)


def report(rows: Sequence[Row], sent: Sequence[Volume], conditions: str) -> str:
    """All tables in Markdown, and how they were made."""
    return "\n".join(
        (
            "# Bytes on the wire",
            "",
            "`python -m benchmarks.wire --write` writes this page.",
            "",
            conditions,
            "",
            "## A generation",
            "",
            "Bytes of protobuf. *Alone* is what a request weighs that has nothing but this "
            "generation: with the resource and the scope, which a batch shares, without HTTP's "
            "headers.",
            "",
            generations(rows),
            "",
            "## An export of metrics",
            "",
            "Once an interval (by default 60 s) and process, for one model, however much it "
            "generates. Exemplars are part of it.",
            "",
            metrics(rows),
            "",
            "## By number",
            "",
            f"A process that has generated {TOKENS} tokens with one model, with step events on the "
            "span and in the log. Of a histogram, Prometheus has a series for each bucket, the sum "
            "and the count.",
            "",
            counts(sent),
            "",
        )
    )


def smollm2(folder: str) -> Generate:
    """The generation that is weighed: sampled, so that it does not run into a loop."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    message = [{"role": "user", "content": PROMPT}]
    inputs: Any = tokenizer.apply_chat_template(
        message, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )

    def generate(tokens: int) -> object:
        torch.manual_seed(0)
        length = {"max_new_tokens": tokens, "min_new_tokens": tokens}
        return model.generate(**inputs, **length, do_sample=True, temperature=0.7)

    return generate


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, fetched once")
    parser.add_argument("--tokens", type=int, nargs="+", default=[50, 500])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    generate = smollm2(options.model or str(safetensors_folder()))
    rows = list(
        track(
            measure(generate, options.tokens),
            "Generating",
            total=len(ways()) * len(options.tokens),
            console=Console(stderr=True),
        )
    )
    name = Path(options.model).name if options.model else "SmolLM2-135M-Instruct"
    packages = ", ".join(
        f"{each} {version(each)}" for each in ("opentelemetry-sdk", "torch", "transformers")
    )
    made = f"{name}, {datetime.now(UTC):%Y-%m-%d}, {packages}."
    results = report(rows, list(volumes(generate)), made)
    print(results)
    if options.write:
        RESULTS.write_text(results, encoding="utf-8")
    heavy = too_heavy(rows)
    if heavy:
        sys.exit(f"not under {LIMIT} bytes without step events: {heavy}")


if __name__ == "__main__":
    main()
