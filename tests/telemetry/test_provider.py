"""The span processor is added once to every provider that takes processors."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider

from corevital import CoreVitalSpanProcessor
from corevital.telemetry.provider import ProcessorInstaller

ROOT = Path(__file__).parents[2]


class CountsProcessors(TracerProvider):
    """Remembers what was added to it."""

    def __init__(self) -> None:
        super().__init__(shutdown_on_exit=False)
        self.added: list[SpanProcessor] = []

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        self.added.append(span_processor)
        super().add_span_processor(span_processor)


def test_adds_its_processor_once_however_often_it_is_asked() -> None:
    provider, processor = CountsProcessors(), CoreVitalSpanProcessor()
    installer = ProcessorInstaller(processor, provider, enabled=True)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: installer.ensure_installed(), range(100)))

    assert provider.added == [processor]
    assert installer.fallback is processor


def test_adds_nothing_when_it_is_told_not_to() -> None:
    provider = CountsProcessors()
    installer = ProcessorInstaller(CoreVitalSpanProcessor(), provider, enabled=False)
    installer.ensure_installed()

    assert provider.added == []
    assert installer.fallback is None


def test_leaves_a_provider_alone_that_takes_no_processors() -> None:
    provider: Any = object()
    ProcessorInstaller(CoreVitalSpanProcessor(), provider, enabled=True).ensure_installed()


def test_keeps_no_provider_alive() -> None:
    processor = CoreVitalSpanProcessor()
    provider = CountsProcessors()
    ProcessorInstaller(processor, provider, enabled=True).ensure_installed()
    gone = weakref.ref(provider)
    del provider
    gc.collect()

    assert gone() is None


# Instruments, generates, and prints what the exporters got. Global providers can be set only once
# in a process, so this runs in one of its own.
GLOBAL_PROVIDERS = """
import json, sys
from opentelemetry import metrics, trace
from opentelemetry._logs import set_logger_provider
from corevital import CoreVitalInstrumentor
from tests.models import tiny_model, tiny_prompt
from tests.providers import in_memory_telemetry

with in_memory_telemetry() as telemetry:
    def provide():
        trace.set_tracer_provider(telemetry.tracer_provider)
        metrics.set_meter_provider(telemetry.meter_provider)
        set_logger_provider(telemetry.logger_provider)

    def generate():
        tiny_model("llama").generate(tiny_prompt(), max_new_tokens=3, do_sample=False)

    if sys.argv[1] == "before":
        provide()
    CoreVitalInstrumentor().instrument()
    if sys.argv[1] == "after a generation":
        generate()
    if sys.argv[1] != "before":
        provide()
    generate()
    generate()
    print(json.dumps({
        "spans": [
            [span.attributes.get("corevital.capture.steps"), len(span.events)]
            for span in telemetry.spans()
        ],
        "logs": [log.log_record.event_name for log in telemetry.logs()],
        "metrics": sorted(telemetry.metrics()),
    }))
"""


@pytest.mark.parametrize("when", ["before", "after", "after a generation"])
def test_the_global_providers_may_be_set_before_or_after_instrumenting(when: str) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", GLOBAL_PROVIDERS, when],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )

    found = json.loads(finished.stdout)
    # Each step has an event, and the layers and the prompt have one each.
    assert found["spans"] == [[3, 5], [3, 5]]
    assert found["logs"] == ["gen_ai.evaluation.result"] * 2
    assert {"corevital.risk.score", "gen_ai.client.token.usage"} <= set(found["metrics"])
