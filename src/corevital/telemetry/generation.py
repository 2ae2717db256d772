"""One instrumented call of ``generate``, from the start of its span to its end."""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Final, cast

from opentelemetry.context import (
    attach,
    create_key,
    detach,
    get_current,
    get_value,
    set_value,
)
from opentelemetry.trace import Span
from opentelemetry.util.genai.invocation import CLIENT_INFERENCE_CONTEXT_KEY, InferenceInvocation

from corevital.assess.escalation import needs_full_capture
from corevital.assess.loops import NEWEST_TOKENS, caught_in_loop
from corevital.assess.profile import Profile
from corevital.assess.risk_so_far import risk_so_far
from corevital.capture.decoding import GenerateCall
from corevital.capture.observation import Interval, Observation, describe_model
from corevital.capture.plan import CapturePlan, InterventionPlan
from corevital.intervention import chosen_intervention
from corevital.record import CaptureMode, Floats, GenerationRecord, LogitColumns
from corevital.telemetry.delivery import PROVIDER, CallDelivery
from corevital.telemetry.handover import Handover
from corevital.telemetry.pipeline import Pipeline
from corevital.telemetry.request import capture_mode, describe_request, failure_of
from corevital.telemetry.span_that_ends import SpanThatEnds

_OWN_GENERATION: Final = create_key("corevital-generation")


class Generation:
    """A call of ``generate`` that is under way, with its span and its observation."""

    def __init__(self, pipeline: Pipeline, call: GenerateCall) -> None:
        pipeline.processors.ensure_installed()
        self._pipeline = pipeline
        self._call = call
        self._model = describe_model(call.model)
        self._content = pipeline.reader.read(call)
        context = get_current()
        if get_value(_OWN_GENERATION, context):
            # A generation inside another is one of its own, not a part of that one's request.
            context = set_value(CLIENT_INFERENCE_CONTEXT_KEY, None, context)
        self._owns_span = get_value(CLIENT_INFERENCE_CONTEXT_KEY, context) is None
        self._handover = Handover()
        context = set_value(_OWN_GENERATION, True, self._handover.in_context(context))
        self._invocation: InferenceInvocation = pipeline.handler.inference(
            PROVIDER,
            request_model=self._model.name,
            operation_name=self._content.operation,
            context=context,
        )
        self._start_time_ns = time.time_ns()
        self._start_counter_ns = time.perf_counter_ns()
        self._observing = ExitStack()
        try:
            if not self._owns_span:
                # An invocation without a span of its own attaches nothing.
                self._observing.callback(detach, attach(context))
            describe_request(self._invocation, call, self._content)
            self.observation = Observation(call, self._plan())
            self._observing.enter_context(self.observation.active())
        except BaseException:
            self._observing.close()
            self._invocation.stop()
            raise

    def _plan(self) -> CapturePlan:
        settings = self._pipeline.settings
        mode = capture_mode(settings, self._span)
        profile = settings.profile_of(self._model.family)

        def escalate(logits: LogitColumns, last_layer_cosine: Floats) -> bool:
            return needs_full_capture(logits, last_layer_cosine, profile)

        return CapturePlan(
            mode,
            settings.top_k,
            settings.prompt,
            settings.prompt_max_tokens,
            escalate if mode is CaptureMode.ON_RISK else None,
            self._intervention(profile),
        )

    def _intervention(self, profile: Profile) -> InterventionPlan | None:
        settings = self._pipeline.settings
        intervention = chosen_intervention() or settings.intervention
        if not intervention.on:
            return None
        calibration = settings.calibrations.for_model(self._model)

        def risk(record: GenerationRecord, looped: bool) -> float:
            return risk_so_far(record, profile, calibration, looped=looped)

        return InterventionPlan(
            intervention,
            caught_in_loop,
            NEWEST_TOKENS,
            risk,
            needs_layers=calibration.risk is not None,
        )

    @property
    def _span(self) -> Span:
        span: Span = self._invocation.span
        return span

    def succeed(self, result: Any) -> None:
        """The call returned ``result``."""
        self._end(None, result)

    def fail(self, error: BaseException, result: Any = None) -> None:
        """The call raised ``error``, perhaps in place of ``result``; what was observed is kept."""
        self._end(error, result)

    def _end(self, error: BaseException | None, result: Any) -> None:
        interval = Interval(self._start_time_ns, self._start_counter_ns, time.perf_counter_ns())
        self._observing.close()
        span, invocation = self._span, self._invocation
        failure = None
        try:
            if error is not None:
                failure = failure_of(error)
            delivery = CallDelivery(
                self._pipeline,
                span,
                self._handover,
                self._content,
                self._model.name,
                self.observation,
                interval,
                failure.type if failure is not None else None,
                self._records(span, interval, result),
            )
            self._describe_response(delivery.records, error)
            if self._owns_span:
                ending = SpanThatEnds(span, interval.end_time_ns, delivery.deliver)
                invocation.span = cast("Span", ending)
            else:
                delivery.deliver()
        finally:
            if error is None:
                invocation.stop()
            else:
                invocation.fail(failure or error)

    def _records(self, span: Span, interval: Interval, result: Any) -> list[GenerationRecord]:
        if not span.is_recording():
            return []
        return self.observation.records(self._model, interval, result)

    def _describe_response(
        self, records: list[GenerationRecord], error: BaseException | None
    ) -> None:
        seen = [record for record in records if record.steps]
        if not seen:
            return
        invocation = self._invocation
        # A prompt with several answers is one prompt, and so are the codebooks of one.
        answers = (self._call.setting("num_return_sequences") or 1) * (self._call.codebooks or 1)
        invocation.input_tokens = sum(record.prompt_tokens for record in records[::answers])
        invocation.output_tokens = sum(record.steps for record in records)
        reasons = [
            "error" if error is not None else record.finish_reason or "stop" for record in records
        ]
        invocation.finish_reasons = reasons
        if invocation.request_stream:
            first = int(seen[0].step_time_ns[0]) - seen[0].start_time_ns
            invocation.ttfc_seconds = first / 1e9
        if invocation.should_capture_content:
            generated = [record.token_ids.tolist() for record in records]
            invocation.output_messages = self._content.output_messages(generated, reasons)
