"""What all instrumented generations share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.trace import Tracer
from opentelemetry.util.genai.handler import TelemetryHandler

from corevital.assess.assessment import Assessment
from corevital.record import GenerationRecord
from corevital.settings import Settings
from corevital.telemetry.content import PromptReader
from corevital.telemetry.guard import Guard
from corevital.telemetry.metrics import GenerationMetrics
from corevital.telemetry.provider import ProcessorInstaller


@dataclass(frozen=True, slots=True)
class Observed:
    """What CoreVital found in one sequence, for a listener in the same process.

    ``assessment`` is ``None`` when nothing could be observed.
    """

    record: GenerationRecord
    assessment: Assessment | None
    trace_id: int
    span_id: int


Listener = Callable[[Observed], None]
"""Called once for every sequence, before its span ends."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """Where the records of generations go."""

    settings: Settings
    handler: TelemetryHandler
    tracer: Tracer
    metrics: GenerationMetrics
    processors: ProcessorInstaller
    reader: PromptReader
    guard: Guard
    listener: Listener | None = None
