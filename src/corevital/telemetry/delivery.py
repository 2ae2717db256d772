"""Delivers the records of one call of ``generate``: to spans, metrics and a listener."""

from __future__ import annotations

import time
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Span, set_span_in_context

from corevital import semconv
from corevital.assess.assessment import Assessment
from corevital.capture.continuous_request import RequestRun
from corevital.capture.observation import Interval, Observation
from corevital.record import GenerationRecord
from corevital.telemetry.attributes import capture_attributes
from corevital.telemetry.content import Content
from corevital.telemetry.handover import Delivery, Handover
from corevital.telemetry.metrics import Attributes
from corevital.telemetry.pipeline import Observed, Pipeline
from corevital.telemetry.size_limit import within_limit

PROVIDER = "huggingface"


@dataclass(slots=True)
class CallDelivery:
    """One call's span, what is known of the call, and its records when they are there."""

    pipeline: Pipeline
    span: Span
    handover: Handover
    content: Content
    model: str
    observation: Observation | RequestRun
    interval: Interval
    error_type: str | None
    records: list[GenerationRecord]

    def deliver(self) -> None:
        """Write everything while the span still records."""
        started = time.perf_counter()
        context = set_span_in_context(self.span)
        if len(self.records) == 1:
            self._deliver_sequence(self.span, self.handover, self.records[0])
        elif self.records:
            self._deliver_batch(context)
        self._record_call(context)
        if self.records:
            cost = self.observation.seconds + time.perf_counter() - started
            self.pipeline.metrics.record_cost(cost, self._metric_attributes(), context)

    def _deliver_batch(self, context: Context) -> None:
        """A child span for each sequence; the parent says what was captured."""
        attributes = capture_attributes(self.records[0].capture)
        attributes |= {semconv.BATCH_SIZE: len(self.records)}
        self.span.set_attributes(within_limit(attributes, self.span))
        for index, record in enumerate(self.records):
            handover = Handover()
            child = self.pipeline.tracer.start_span(
                f"sequence {self.model}",
                context=handover.in_context(context),
                start_time=record.start_time_ns,
                attributes={
                    gen_ai_attributes.GEN_AI_PROVIDER_NAME: PROVIDER,
                    gen_ai_attributes.GEN_AI_REQUEST_MODEL: self.model,
                    gen_ai_attributes.GEN_AI_USAGE_INPUT_TOKENS: record.prompt_tokens,
                    gen_ai_attributes.GEN_AI_USAGE_OUTPUT_TOKENS: record.steps,
                    semconv.SEQUENCE_INDEX: index,
                },
            )
            try:
                self._deliver_sequence(child, handover, record)
            finally:
                child.end(record.end_time_ns)

    def _deliver_sequence(self, span: Span, handover: Handover, record: GenerationRecord) -> None:
        assessment: Assessment | None = None
        guard = self.pipeline.guard
        writer = handover.writer_of(span) or self.pipeline.processors.fallback
        if writer is not None:
            texts = guard("texts", self.content.token_texts, record.token_ids.tolist())
            assessment = guard("assessment", writer.write, span, Delivery(record, texts))
        context, attributes = set_span_in_context(span), self._metric_attributes()
        self.pipeline.metrics.record_generation(record, attributes, context)
        if assessment is not None:
            self.pipeline.metrics.record_assessment(assessment, attributes, context)
        if self.pipeline.listener is not None:
            identity = span.get_span_context()
            observed = Observed(record, assessment, identity.trace_id, identity.span_id)
            guard("listener", self.pipeline.listener, observed)

    def _record_call(self, context: Context) -> None:
        metrics, attributes = self.pipeline.metrics, self._metric_attributes()
        failed: Attributes = {}
        if self.error_type is not None:
            failed[error_attributes.ERROR_TYPE] = self.error_type
        seconds = (self.interval.end_counter_ns - self.interval.start_counter_ns) / 1e9
        metrics.record_request(
            seconds,
            self.observation.token_seconds(self.interval),
            attributes | failed,
            context,
            succeeded=self.error_type is None,
        )
        for stopped in self.observation.stopped_early():
            metrics.record_intervention(stopped.reason, attributes, context)
        for signal in self.observation.failed_signals:
            metrics.record_failure(signal, attributes, context)

    def _metric_attributes(self) -> Attributes:
        return {
            gen_ai_attributes.GEN_AI_OPERATION_NAME: self.content.operation,
            gen_ai_attributes.GEN_AI_PROVIDER_NAME: PROVIDER,
            gen_ai_attributes.GEN_AI_REQUEST_MODEL: self.model,
        }
