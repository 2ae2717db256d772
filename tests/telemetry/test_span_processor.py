"""The span processor writes a generation's record to its span, in whatever pipeline it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from opentelemetry.context import Context
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk.trace import (
    ConcurrentMultiSpanProcessor,
    ReadableSpan,
    SpanLimits,
    SpanProcessor,
    SynchronousMultiSpanProcessor,
    TracerProvider,
)
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import get_current_span
from transformers import LogitsProcessor, LogitsProcessorList

from corevital import CoreVitalSpanProcessor, Settings, SettingsError
from corevital.telemetry.handover import Handover
from tests.instrumentation import attributes, events, identity, parent_identity, step_indices
from tests.models import GenerativeModel
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import STEPS, greedy

MultiSpanProcessor = SynchronousMultiSpanProcessor | ConcurrentMultiSpanProcessor


def generate(model: GenerativeModel, steps: int = STEPS, **options: Any) -> None:
    greedy(model, max_new_tokens=steps, min_new_tokens=steps, **options)


def is_complete(span: ReadableSpan) -> bool:
    """Whether the whole record is on the span, once."""
    written = attributes(span)
    return (
        written.get("corevital.capture.steps") == STEPS
        and "corevital.risk.score" in written
        and "corevital.entropy.mean" in written
        and step_indices(span) == list(range(STEPS))
        and len(events(span, "corevital.layers")) == 1
        and len(events(span, "corevital.prompt")) == 1
    )


def is_untouched(span: ReadableSpan) -> bool:
    return not any(name.startswith("corevital.") for name in attributes(span)) and not span.events


def pipeline(
    exporter: SpanExporter,
    multi: type[MultiSpanProcessor] = SynchronousMultiSpanProcessor,
    export: Callable[[SpanExporter], SpanProcessor] = SimpleSpanProcessor,
    own: str = "none",
    logger_provider: LoggerProvider | None = None,
) -> TracerProvider:
    """A provider with an exporting processor and, ``first`` or ``last``, one of CoreVital's."""
    provider = TracerProvider(active_span_processor=multi(), shutdown_on_exit=False)
    if own == "first":
        provider.add_span_processor(CoreVitalSpanProcessor(logger_provider=logger_provider))
    provider.add_span_processor(export(exporter))
    if own == "last":
        provider.add_span_processor(CoreVitalSpanProcessor(logger_provider=logger_provider))
    return provider


def limited(exporter: SpanExporter, limits: SpanLimits) -> TracerProvider:
    provider = TracerProvider(span_limits=limits, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.mark.parametrize("automatic", [True, False])
@pytest.mark.parametrize("own", ["first", "last", "none"])
@pytest.mark.parametrize("export", [SimpleSpanProcessor, BatchSpanProcessor])
@pytest.mark.parametrize("multi", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_writes_once_before_any_exporter_in_every_pipeline(
    multi: type[MultiSpanProcessor],
    export: Callable[[SpanExporter], SpanProcessor],
    own: str,
    automatic: bool,
    model: GenerativeModel,
    instrument: Instrument,
    telemetry: Telemetry,
) -> None:
    exporter = InMemorySpanExporter()
    provider = pipeline(exporter, multi, export, own, telemetry.logger_provider)
    instrument(tracer_provider=provider, span_processor=automatic)
    generate(model)
    provider.force_flush()

    (span,) = exporter.get_finished_spans()
    written = automatic or own != "none"
    assert is_complete(span) if written else is_untouched(span)
    assert len(telemetry.logs()) == (1 if written else 0)
    provider.shutdown()


@pytest.mark.parametrize("multi", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
def test_may_be_added_after_instrumenting(
    multi: type[MultiSpanProcessor], model: GenerativeModel, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    provider = pipeline(exporter, multi)
    instrument(tracer_provider=provider, span_processor=False)
    provider.add_span_processor(CoreVitalSpanProcessor())
    generate(model)

    assert all(map(is_complete, exporter.get_finished_spans()))
    provider.shutdown()


def test_of_several_the_first_writes_with_its_own_settings(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    own = Settings(step_events="none", high_entropy_bits=0.001)
    telemetry.tracer_provider.add_span_processor(CoreVitalSpanProcessor(own))
    telemetry.tracer_provider.add_span_processor(CoreVitalSpanProcessor())
    instrument()
    generate(model)

    (span,) = telemetry.spans()
    assert attributes(span)["corevital.health.high_entropy_steps"] == STEPS
    assert span.events == ()
    assert telemetry.logs() == []  # That processor was given no logger provider.


def test_takes_its_settings_from_the_environment(
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COREVITAL_STEP_EVENTS", "none")
    telemetry.tracer_provider.add_span_processor(CoreVitalSpanProcessor())
    instrument(step_events="span")
    generate(model)

    assert telemetry.spans()[0].events == ()
    monkeypatch.setenv("COREVITAL_STEP_EVENTS", "spans")
    with pytest.raises(SettingsError, match=r"^COREVITAL_STEP_EVENTS='spans'"):
        CoreVitalSpanProcessor()


def test_each_provider_gets_the_spans_of_its_own_tracers(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    other = pipeline(exporter, own="first")
    instrument()
    with other.get_tracer("app").start_as_current_span("of another provider") as around:
        generate(model)

    (span,) = telemetry.spans()
    assert is_complete(span)
    parent = parent_identity(span)
    assert parent is not None
    assert around.get_span_context().span_id == parent[1]
    (outer,) = exporter.get_finished_spans()
    assert is_untouched(outer)
    other.shutdown()


class StartsSpan(LogitsProcessor):
    """What an application does inside a generation: a span of its own, at every token."""

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("app")

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        with self._tracer.start_as_current_span("inside"):
            return scores


@pytest.mark.parametrize("multi", [SynchronousMultiSpanProcessor, ConcurrentMultiSpanProcessor])
@pytest.mark.parametrize("own", ["first", "last", "none"])
def test_a_span_started_inside_the_generation_takes_nothing(
    own: str, multi: type[MultiSpanProcessor], model: GenerativeModel, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    provider = pipeline(exporter, multi, own=own)
    instrument(tracer_provider=provider)
    generate(model, logits_processor=LogitsProcessorList([StartsSpan(provider)]))

    *inner, generation = exporter.get_finished_spans()
    assert is_complete(generation)
    assert len(inner) == STEPS
    assert all(map(is_untouched, inner))
    assert {parent_identity(span) for span in inner} == {identity(generation)}
    provider.shutdown()


def test_a_span_of_another_provider_inside_the_generation_takes_nothing(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    other = pipeline(exporter, own="first")
    instrument(span_processor=False)
    generate(model, logits_processor=LogitsProcessorList([StartsSpan(other)]))

    # No processor of the generation's own provider writes, so nothing is written anywhere.
    assert is_untouched(telemetry.spans()[0])
    assert all(map(is_untouched, exporter.get_finished_spans()))
    other.shutdown()


def test_a_provider_that_takes_no_processors_is_written_to_all_the_same(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    class Closed:
        """Hands out tracers and has nothing else."""

        def get_tracer(self, *args: Any, **kwargs: Any) -> Any:
            return telemetry.tracer_provider.get_tracer(*args, **kwargs)

    instrument(tracer_provider=Closed())
    generate(model)

    assert is_complete(telemetry.spans()[0])


def test_a_retired_processor_notes_no_span(telemetry: Telemetry) -> None:
    processor = CoreVitalSpanProcessor()
    telemetry.tracer_provider.add_span_processor(processor)
    tracer = telemetry.tracer_provider.get_tracer("app")
    before, after = Handover(), Handover()
    noted = tracer.start_span("generation", before.in_context(Context()))
    processor.retire()
    overlooked = tracer.start_span("generation", after.in_context(Context()))

    assert before.writer_of(noted) is processor
    assert after.writer_of(overlooked) is None


def test_holds_nothing_that_could_be_lost() -> None:
    processor = CoreVitalSpanProcessor()
    processor.shutdown()

    assert processor.force_flush()


@pytest.mark.parametrize("limit", [3, 5, 40])
def test_keeps_within_the_event_limit_of_the_providers_own(
    limit: int, model: GenerativeModel, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    provider = limited(exporter, SpanLimits(max_events=limit))
    instrument(tracer_provider=provider)
    generate(model, 60)

    (span,) = exporter.get_finished_spans()
    check_limited(span, 60, limit)
    provider.shutdown()


@pytest.mark.parametrize(("variable", "limit"), [(None, 128), ("9", 9), ("200", 200)])
def test_keeps_within_the_event_limit_of_the_environment(
    variable: str | None,
    limit: int,
    model: GenerativeModel,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if variable is not None:
        monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", variable)
    exporter = InMemorySpanExporter()
    provider = pipeline(exporter)
    instrument(tracer_provider=provider)
    generate(model, 150)

    (span,) = exporter.get_finished_spans()
    check_limited(span, 150, limit)
    provider.shutdown()


def test_without_an_event_limit_every_step_has_its_event(
    model: GenerativeModel, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    provider = limited(exporter, SpanLimits(max_events=SpanLimits.UNSET))
    instrument(tracer_provider=provider)
    generate(model, 150)

    (span,) = exporter.get_finished_spans()
    assert step_indices(span) == list(range(150))
    assert attributes(span)["corevital.step.omitted"] == 0
    provider.shutdown()


def check_limited(span: ReadableSpan, steps: int, limit: int) -> None:
    """No event was dropped; the first and the last step have one; the rest are counted."""
    kept = step_indices(span)
    assert span.dropped_events == 0
    assert len(span.events) <= limit
    assert len(kept) == min(steps, limit - 2)
    assert kept == sorted(set(kept))
    assert kept[0] == 0
    assert len(kept) == 1 or kept[-1] == steps - 1
    assert attributes(span)["corevital.step.omitted"] == steps - len(kept)
    assert len(events(span, "corevital.layers")) == len(events(span, "corevital.prompt")) == 1


@pytest.mark.parametrize("limit", [0, 1, 2])
def test_a_limit_below_what_it_writes_costs_no_exception(
    limit: int, model: GenerativeModel, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    provider = limited(exporter, SpanLimits(max_events=limit))
    instrument(tracer_provider=provider)
    generate(model)

    (span,) = exporter.get_finished_spans()
    assert attributes(span)["corevital.step.omitted"] == STEPS
    assert len(span.events) == limit
    provider.shutdown()


class AddsEvents(LogitsProcessor):
    """An application that adds events of its own to the generation's span."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        get_current_span().add_event("of the application")
        return scores


def test_leaves_room_for_the_events_of_the_application(
    model: GenerativeModel, instrument: Instrument
) -> None:
    exporter = InMemorySpanExporter()
    provider = limited(exporter, SpanLimits(max_events=30))
    instrument(tracer_provider=provider)
    generate(model, 20, logits_processor=LogitsProcessorList([AddsEvents()]))

    (span,) = exporter.get_finished_spans()
    assert span.dropped_events == 0
    assert len(events(span, "of the application")) == 20
    assert len(step_indices(span)) == 30 - 20 - 2
    provider.shutdown()
