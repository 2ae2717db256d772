"""The span of one request of a continuous batch."""

from __future__ import annotations

import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from opentelemetry.context import get_current, set_value
from opentelemetry.trace import Span
from opentelemetry.util.genai.invocation import CLIENT_INFERENCE_CONTEXT_KEY, InferenceInvocation

from corevital.capture.continuous_request import Ending, RequestCall, RequestRun
from corevital.capture.observation import Interval
from corevital.record import GenerationRecord, ModelDescription
from corevital.telemetry.delivery import PROVIDER, CallDelivery
from corevital.telemetry.handover import Handover
from corevital.telemetry.pipeline import Pipeline
from corevital.telemetry.request import capture_mode, describe_request, failure_of
from corevital.telemetry.span_that_ends import SpanThatEnds


@dataclass(frozen=True, slots=True)
class NewRequest:
    """What a request asks for; ``max_new_tokens`` is ``None`` where nothing limits it."""

    call: RequestCall
    max_new_tokens: int | None
    streams: bool


class RequestSpan:
    """A span that begins where a request is added, and ends when the request does."""

    def __init__(
        self,
        pipeline: Pipeline,
        model: ModelDescription,
        request: NewRequest,
        later: Callable[[Callable[[], object]], None],
    ) -> None:
        """Start the span in the current context; ``later`` takes what is to be done at its end."""
        self._pipeline = pipeline
        self._model = model
        self._later = later
        self._content = pipeline.reader.read(request.call)
        self._handover = Handover()
        # Of an instrumentation around many requests, each is one of its own.
        context = set_value(CLIENT_INFERENCE_CONTEXT_KEY, None, get_current())
        self._invocation: InferenceInvocation = pipeline.handler.inference(
            PROVIDER,
            request_model=model.name,
            operation_name=self._content.operation,
            context=self._handover.in_context(context),
        )
        self._start_time_ns = time.time_ns()
        self._start_counter_ns = time.perf_counter_ns()
        try:
            # The caller goes on while the request waits for its tokens.
            self._invocation.suspend()
            describe_request(self._invocation, request.call, self._content)
            self._invocation.max_tokens = request.max_new_tokens
            self._invocation.request_stream = request.streams or None
            mode = capture_mode(pipeline.settings, self._span)
            self.run = RequestRun(request.call, mode, self._ended)
        except BaseException:
            self._invocation.stop()
            raise

    @property
    def _span(self) -> Span:
        span: Span = self._invocation.span
        return span

    def _ended(self, ending: Ending) -> None:
        self._later(lambda: self._pipeline.guard("record", self._deliver, ending))

    def _deliver(self, ending: Ending) -> None:
        interval = Interval(self._start_time_ns, self._start_counter_ns, ending.counter_ns)
        span, invocation = self._span, self._invocation
        failure = None
        try:
            if ending.error is not None:
                failure = failure_of(ending.error)
            records = self._records(span, interval, ending)
            delivery = CallDelivery(
                self._pipeline,
                span,
                self._handover,
                self._content,
                self._model.name,
                self.run,
                interval,
                failure.type if failure is not None else None,
                records,
            )
            for record in records:
                self._describe_response(record)
            span_that_ends = SpanThatEnds(span, interval.end_time_ns, delivery.deliver)
            invocation.span = cast("Span", span_that_ends)
        finally:
            # The invocation measures until now, which is later than the end.
            seconds = (ending.counter_ns - self._start_counter_ns) / 1e9
            invocation._monotonic_start_s = timeit.default_timer() - seconds
            if ending.error is None:
                invocation.stop()
            else:
                invocation.fail(failure or ending.error)

    def _records(self, span: Span, interval: Interval, ending: Ending) -> list[GenerationRecord]:
        if not span.is_recording():
            return []
        return [self.run.record(self._model, interval, ending.finish_reason)]

    def _describe_response(self, record: GenerationRecord) -> None:
        invocation = self._invocation
        reason = record.finish_reason
        if reason is not None:
            invocation.finish_reasons = [reason]
        if not record.steps:
            return
        invocation.input_tokens = record.prompt_tokens
        invocation.output_tokens = record.steps
        if invocation.request_stream:
            first = int(record.step_time_ns[0]) - record.start_time_ns
            invocation.ttfc_seconds = first / 1e9
        if invocation.should_capture_content:
            generated = [record.token_ids.tolist()]
            invocation.output_messages = self._content.output_messages(generated, [reason or ""])
