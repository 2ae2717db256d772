"""Span and evaluation of a generation stay under 4 kB of real OTLP, whatever was found."""

from __future__ import annotations

import itertools
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import example, given, settings
from opentelemetry.exporter.otlp.proto.common._log_encoder import encode_logs
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from corevital import CoreVitalSpanProcessor, Settings, semconv
from corevital.assess.assessment import Assessment
from corevital.record import GenerationRecord
from corevital.settings import StepEvents
from corevital.telemetry import span_processor
from corevital.telemetry.attributes import assessment_attributes, record_attributes
from corevital.telemetry.handover import Delivery
from corevital.telemetry.request import MOST_MESSAGE_BYTES
from corevital.telemetry.size_limit import CUTS, LIMIT
from corevital.telemetry.wire_size import record_size
from tests.dashboards.panels import queries
from tests.instrumentation import attributes, identity
from tests.models import tiny_model, tiny_prompt
from tests.providers import Telemetry, in_memory_telemetry
from tests.telemetry.conftest import Instrument
from tests.telemetry.findings import assessments, longest_assessment, longest_record, records
from tests.telemetry.records import full_record

ROOT = Path(__file__).parents[2]
CORE = (
    semconv.CAPTURE_MODE,
    semconv.RISK_SCORE,
    semconv.RISK_LEVEL,
    semconv.NAN_OR_INF,
    semconv.REPETITION_LOOP,
    semconv.REPETITION_DETECTED,
    semconv.MID_LAYER_ANOMALY,
    semconv.ATTENTION_COLLAPSE,
    semconv.SIGNAL_NAMES,
    semconv.EARLY_WARNING_SIGNALS,
    semconv.CONSISTENCY_VIOLATIONS,
)
# What an application can put on the span, as long as it may be: names of 255 bytes are the longest
# that file systems take, and the Hub's are shorter.
LONGEST: dict[str, Any] = {
    gen_ai.GEN_AI_REQUEST_MODEL: "m" * 255,
    gen_ai.GEN_AI_CONVERSATION_ID: "c" * 64,
    gen_ai.GEN_AI_AGENT_NAME: "a" * 64,
    gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES: ["\n\n\n", "<|im_end|>", "</s>"],
    error_attributes.ERROR_TYPE: "torch.cuda.OutOfMemoryError",
}


def standard_span(telemetry: Telemetry, message: str = "", **changed: Any) -> Span:
    """A span as it is when a call has returned, or failed, before CoreVital writes to it."""
    found: dict[str, Any] = {
        gen_ai.GEN_AI_OPERATION_NAME: "text_completion",
        gen_ai.GEN_AI_PROVIDER_NAME: "huggingface",
        gen_ai.GEN_AI_REQUEST_MODEL: "organisation/model-7b-instruct",
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: 10**6,
        gen_ai.GEN_AI_REQUEST_TEMPERATURE: 0.7,
        gen_ai.GEN_AI_REQUEST_TOP_K: 50,
        gen_ai.GEN_AI_REQUEST_TOP_P: 0.9,
        gen_ai.GEN_AI_REQUEST_STREAM: True,
        gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: 0.5,
        gen_ai.GEN_AI_OUTPUT_TYPE: "text",
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: ["length"],
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: 10**6,
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: 10**6,
    } | changed
    tracer = telemetry.tracer_provider.get_tracer("corevital")
    name = f"text_completion {found[gen_ai.GEN_AI_REQUEST_MODEL]}"
    span = tracer.start_span(name, kind=SpanKind.CLIENT)
    span.set_attributes(found)
    if message:
        span.set_status(Status(StatusCode.ERROR, message))
    return span


def sent(telemetry: Telemetry) -> int:
    """Bytes of the span and its log records, as the exporters encode them."""
    spans = encode_spans(telemetry.spans()).resource_spans[0].scope_spans[0].spans
    # Of what was not observed there is no evaluation.
    resources = encode_logs(telemetry.logs()).resource_logs
    logs = [log for each in resources for scope in each.scope_logs for log in scope.log_records]
    return sum(each.ByteSize() for each in (*spans, *logs))


def written(
    telemetry: Telemetry,
    record: GenerationRecord,
    found: Assessment | None = None,
    message: str = "",
    **changed: Any,
) -> dict[str, Any]:
    """What a span has after ``record``, assessed as ``found``; by default, as it is."""
    processor = CoreVitalSpanProcessor(
        Settings(step_events=StepEvents.NONE), telemetry.logger_provider
    )
    span = standard_span(telemetry, message, **changed)
    assessing = patch.object(span_processor, "assess", return_value=found)
    with nullcontext() if found is None else assessing:
        processor.write(span, Delivery(record, None))
    span.end()
    return attributes(telemetry.spans()[-1])


@example(longest_record(), longest_assessment())
@given(records(), assessments())
@settings(deadline=None, max_examples=150)
def test_every_generation_stays_under_the_limit(
    record: GenerationRecord, found: Assessment
) -> None:
    with in_memory_telemetry() as telemetry:
        names = written(telemetry, record, found, "e" * MOST_MESSAGE_BYTES, **LONGEST).keys()

        assert sent(telemetry) < LIMIT
        if record.observed:
            assert names >= {*CORE, semconv.BLAME_LAYERS, semconv.PROMPT_HASH}


def test_a_usual_generation_is_told_whole(telemetry: Telemetry) -> None:
    found = written(telemetry, full_record())

    assert semconv.OMITTED not in found
    assert found.keys() >= {*CUTS[0].names, semconv.NARRATIVE, semconv.FINGERPRINT_VECTOR}


def test_the_span_says_how_many_attributes_were_cut(telemetry: Telemetry) -> None:
    found = written(telemetry, longest_record(), longest_assessment())
    everything = record_attributes(longest_record()) | assessment_attributes(longest_assessment())
    cut = [name for name, value in everything.items() if as_sent(value) != found.get(name)]

    # And the narrative.
    assert found[semconv.OMITTED] == len(cut) + 1 > 20


def as_sent(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def test_the_less_room_there_is_the_less_is_told(telemetry: Telemetry) -> None:
    stop_strings: Any = gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES
    told = [
        written(telemetry, full_record(), None, "", **{stop_strings: ["x" * length]})
        for length in range(0, 2400, 40)
    ]

    names = [attributes.keys() - {semconv.OMITTED} for attributes in told]
    assert names[0] > names[-1]
    assert all(more >= less for more, less in itertools.pairwise(names))
    # The same numbers under other names go first, and together.
    first = next(less for less in names if less < names[0])
    assert names[0] - first == set(CUTS[0].names)
    omitted = [attributes.get(semconv.OMITTED, 0) for attributes in told]
    assert omitted == sorted(omitted)


def test_what_is_replaced_takes_no_room(telemetry: Telemetry) -> None:
    once = written(telemetry, full_record())
    # As in the span of another instrumentation, around two calls.
    twice = written(telemetry, full_record(), None, "", **once)

    assert twice == once


@pytest.mark.parametrize(
    "name", [gen_ai.GEN_AI_INPUT_MESSAGES, gen_ai.GEN_AI_OUTPUT_MESSAGES, "app.document"]
)
def test_messages_and_what_the_application_adds_take_no_room(
    name: str, telemetry: Telemetry
) -> None:
    without = written(telemetry, full_record())
    with_text = written(telemetry, full_record(), None, "", **{name: "x" * 10_000})

    assert with_text.keys() - {name} == without.keys()


def test_what_alerts_sampling_and_dashboards_look_for_is_never_left_out() -> None:
    configurations = [ROOT / "collector-config" / name for name in ("alerts.yaml", "sampling.yaml")]
    # What a query only shows, after its filter, may be missing from a row.
    asked = [query.text.partition("| select")[0] for query in queries("tempo")]
    text = "\n".join([*asked, *(path.read_text() for path in configurations)])
    found = {each.name for each in semconv.ATTRIBUTES if each.name in text}
    left_out = {name for cut in CUTS for name in cut.names if not cut.keep}

    assert found >= {semconv.RISK_SCORE, semconv.NAN_OR_INF, semconv.SIGNAL_NAMES}
    assert found & left_out == set()


def test_each_sequence_of_a_batch_has_the_limit_to_itself(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(step_events="none")
    model: Any = tiny_model("llama", num_hidden_layers=24)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight.mul_(1000.0)
    torch.manual_seed(0)
    model.generate(tiny_prompt(), do_sample=True, max_new_tokens=12, num_return_sequences=3)

    *children, call = telemetry.spans()
    evaluations = {log.log_record.span_id: record_size(log.log_record) for log in telemetry.logs()}
    assert len(children) == len(evaluations) == 3
    for child in children:
        assert encoded(child) + evaluations[identity(child).span_id] < LIMIT
        assert attributes(child)[semconv.OMITTED] > 0
    assert encoded(call) < LIMIT
    assert semconv.OMITTED not in attributes(call)


def encoded(span: ReadableSpan) -> int:
    (sent,) = encode_spans([span]).resource_spans[0].scope_spans[0].spans
    return sent.ByteSize()
