"""The span processor that turns a generation's record into span attributes and events."""

from __future__ import annotations

from typing import Final

from opentelemetry._logs import Logger, LoggerProvider, LogRecord, SeverityNumber, get_logger
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, SpanProcessor
from opentelemetry.sdk.trace import Span as SdkSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.util.genai.types import ContentCapturingMode
from opentelemetry.util.genai.utils import get_content_capturing_mode

from corevital import semconv
from corevital.assess.assessment import Assessment, assess
from corevital.assess.wording import counted
from corevital.record import GenerationRecord
from corevital.settings import Settings, StepEvents, load_settings
from corevital.telemetry.attributes import (
    Value,
    assessment_attributes,
    capture_attributes,
    intervention_attributes,
    narrative_attributes,
    record_attributes,
)
from corevital.telemetry.events import TimedEvent, layers_event, prompt_event, step_events
from corevital.telemetry.handover import Delivery, handover_in, without_texts
from corevital.telemetry.size_limit import within_limit
from corevital.telemetry.step_selection import select_steps
from corevital.version import __version__

_ON_SPANS: Final = (ContentCapturingMode.SPAN_ONLY, ContentCapturingMode.SPAN_AND_EVENT)
_ON_EVENTS: Final = (ContentCapturingMode.EVENT_ONLY, ContentCapturingMode.SPAN_AND_EVENT)
EVALUATION_EVENT: Final = "gen_ai.evaluation.result"
EVALUATION_NAME: Final = "corevital.risk"
_FACTORS_TOLD: Final = 5
_OTHER_SPAN_EVENTS: Final = 2
_NO_LIMIT: Final = 2**31


class CoreVitalSpanProcessor(SpanProcessor):
    """Writes what CoreVital found to the span of each generation, before any exporter sees it.

    It takes note of a generation's span when it starts and writes just before it ends, while the
    span still accepts attributes. So neither its place among other processors nor what the SDK
    does in ``_on_ending`` (1.45 freezes spans before it) makes a difference.
    """

    def __init__(
        self, settings: Settings | None = None, logger_provider: LoggerProvider | None = None
    ) -> None:
        """Take ``settings``, by default those of the environment.

        Raises:
            SettingsError: a setting in the environment is not accepted.
            CalibrationError: a calibration file in ``settings`` cannot be used.
        """
        self._settings = settings if settings is not None else load_settings()
        self._calibrations = self._settings.calibrations
        self._logger_provider = logger_provider
        self._content = get_content_capturing_mode()
        self._retired = False

    def on_start(self, span: SdkSpan, parent_context: Context | None = None) -> None:
        """Note the span, if the context says that it is a generation's."""
        handover = None if self._retired else handover_in(parent_context)
        if handover is not None:
            handover.offer(span, self)

    def retire(self) -> None:
        """Write to no further span; a provider keeps its processors until it ends."""
        self._retired = True

    def on_end(self, span: ReadableSpan) -> None:
        """Nothing is left to do."""

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held."""
        return True

    def write(self, span: Span, delivery: Delivery) -> Assessment | None:
        """Assess a record and write the result to its span, which is still recording.

        A record without observations is not assessed: nothing is known of its risk.
        """
        record = delivery.record
        if not record.observed:
            found = capture_attributes(record.capture) | intervention_attributes(record)
            span.set_attributes(within_limit(found, span))
            return None
        profile = self._settings.profile_of(record.model.family)
        calibration = self._calibrations.for_model(record.model)
        assessment = assess(record, profile, calibration, self._settings.risk_levels)
        shown = delivery if self._content in _ON_SPANS else without_texts(delivery)
        evaluation = _evaluation(span, record, assessment)
        found = (
            record_attributes(record)
            # Until events are written, no step has one.
            | {semconv.STEPS_WITHOUT_EVENT: record.steps}
            | assessment_attributes(assessment)
            | narrative_attributes(record, assessment, shown.token_texts)
        )
        span.set_attributes(within_limit(found, span, evaluation))
        onsets = [loop.onset_step for loop in assessment.loops]
        self._write_events(span, delivery, profile.high_entropy_bits, onsets)
        self._logger().emit(evaluation)
        return assessment

    def _write_events(
        self, span: Span, delivery: Delivery, high_entropy_bits: float, onsets: list[int]
    ) -> None:
        record = delivery.record
        where = self._settings.step_events
        if where is StepEvents.NONE:
            return
        on_span = where in (StepEvents.SPAN, StepEvents.BOTH)
        limit = max(_event_limit(span) - _OTHER_SPAN_EVENTS, 0) if on_span else record.steps
        chosen = select_steps(record, high_entropy_bits, limit, onsets)
        in_log = where in (StepEvents.LOG, StepEvents.BOTH)
        omitted = 0 if in_log else record.steps - len(chosen)
        span.set_attribute(semconv.STEPS_WITHOUT_EVENT, omitted)
        extra = [event for event in (prompt_event(record), layers_event(record)) if event]
        if on_span:
            shown = delivery if self._content in _ON_SPANS else without_texts(delivery)
            for event in (*step_events(shown, chosen), *extra):
                span.add_event(event.name, event.attributes, event.time_ns)
        if in_log:
            logger = self._logger()
            shown = delivery if self._content in _ON_EVENTS else without_texts(delivery)
            for event in (*step_events(shown, list(range(record.steps))), *extra):
                logger.emit(_log_record(span, event))

    def _logger(self) -> Logger:
        return get_logger("corevital", __version__, self._logger_provider)


def _event_limit(span: Span) -> int:
    """How many more events the span keeps: beyond its limit, the SDK drops the first ones."""
    limits = getattr(span, "_limits", None) or SpanLimits()
    if limits.max_events is None:
        return _NO_LIMIT
    return max(limits.max_events - len(getattr(span, "events", ())), 0)


def _log_record(span: Span, event: TimedEvent) -> LogRecord:
    # Stores that keep no event name still find the event by its body.
    return LogRecord(
        timestamp=event.time_ns,
        context=set_span_in_context(span),
        severity_number=SeverityNumber.INFO,
        body=event.name,
        attributes=event.attributes,
        event_name=event.name,
    )


def _evaluation(span: Span, record: GenerationRecord, assessment: Assessment) -> LogRecord:
    """The standard GenAI event for the assessment of a model's output."""
    risk = assessment.risk
    largest = sorted(risk.factors, key=lambda factor: -factor.contribution)
    parts = [f"{factor.name} {factor.contribution:.2f}" for factor in largest[:_FACTORS_TOLD]]
    if more := len(largest) - len(parts):
        parts.append(counted(more, "smaller factor"))
    factors = "".join(f", {part}" for part in parts)
    explanation = f"{risk.source.value}; published heuristic {risk.heuristic:.2f}{factors}"
    attributes: dict[str, Value] = {
        gen_ai_attributes.GEN_AI_EVALUATION_NAME: EVALUATION_NAME,
        gen_ai_attributes.GEN_AI_EVALUATION_SCORE_VALUE: risk.score,
        gen_ai_attributes.GEN_AI_EVALUATION_SCORE_LABEL: risk.level.value,
        gen_ai_attributes.GEN_AI_EVALUATION_EXPLANATION: explanation,
    }
    return _log_record(span, TimedEvent(EVALUATION_EVENT, record.end_time_ns, attributes))
