"""What arrives over OTLP when a real model generates."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import SpanKind, StatusCode
from transformers import LogitsProcessor, LogitsProcessorList

from corevital import __version__, semconv
from corevital.assess.fingerprint import NAMES
from tests.end_to_end.exporting import SERVICE, Exporting, exporting
from tests.otlp_data import Event, Point, ReceivedLog, ReceivedSpan
from tests.otlp_receiver import LogsRequest, MetricsRequest, TraceRequest
from tests.smollm2 import LoadedModel

TOKENS = 12
QUESTION = "What is the capital of France?"
PLAIN = "Zebras are striped because"
# Words of the questions and of the answers that are found nowhere but in them.
CONTENT = ("capital", "France", "Paris", "Zebras", "striped")

# Attributes of the semantic conventions that a call may have, by their type.
STANDARD: dict[str, type] = {
    gen_ai.GEN_AI_OPERATION_NAME: str,
    gen_ai.GEN_AI_PROVIDER_NAME: str,
    gen_ai.GEN_AI_REQUEST_MODEL: str,
    gen_ai.GEN_AI_REQUEST_MAX_TOKENS: int,
    gen_ai.GEN_AI_REQUEST_TEMPERATURE: float,
    gen_ai.GEN_AI_REQUEST_TOP_P: float,
    # A double at first, an integer since the conventions have a repository of their own.
    gen_ai.GEN_AI_REQUEST_TOP_K: int,
    gen_ai.GEN_AI_REQUEST_CHOICE_COUNT: int,
    gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES: list,
    gen_ai.GEN_AI_REQUEST_STREAM: bool,
    gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: list,
    gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK: float,
    gen_ai.GEN_AI_OUTPUT_TYPE: str,
    gen_ai.GEN_AI_USAGE_INPUT_TOKENS: int,
    gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: int,
    gen_ai.GEN_AI_INPUT_MESSAGES: str,
    gen_ai.GEN_AI_OUTPUT_MESSAGES: str,
}


class Measured(NamedTuple):
    """When a call of ``generate`` ran, by the clocks around it."""

    start_ns: int
    end_ns: int
    seconds: float


class Wire(NamedTuple):
    """What was received of the calls, and what is known of them otherwise."""

    exporting: Exporting
    spans: dict[str, ReceivedSpan]
    children: list[ReceivedSpan]
    measured: dict[str, Measured]
    tokens: dict[str, list[int]]

    def logs(self, event_name: str) -> list[ReceivedLog]:
        return [log for log in self.exporting.receiver.logs() if log.event_name == event_name]


class Fails(LogitsProcessor):
    """Raises when the third token is to be chosen."""

    def __init__(self) -> None:
        self._left = 2

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self._left == 0:
            raise ConnectionError("lost")
        self._left -= 1
        return scores


def stops_at_once(loaded: LoadedModel) -> dict[str, Any]:
    """Arguments with which the first token that the model chooses is the last."""
    inputs = loaded.chat(QUESTION)
    tokens = loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    return {**inputs, "eos_token_id": int(tokens[0, -1])}


def call(loaded: LoadedModel, wire: Wire, name: str, **arguments: Any) -> None:
    """Generate in a span of the application's own, and measure how long that takes."""
    tracer = wire.exporting.tracer_provider.get_tracer("app")
    settings = {"max_new_tokens": TOKENS, "do_sample": False} | arguments
    with tracer.start_as_current_span(name):
        start_ns, started = time.time_ns(), time.perf_counter()
        try:
            tokens = loaded.model.generate(**settings)
            prompt = settings["input_ids"].shape[1]
            wire.tokens[name] = tokens[0, prompt:].tolist()
        except ConnectionError:
            pass
        seconds = time.perf_counter() - started
        wire.measured[name] = Measured(start_ns, time.time_ns(), seconds)


def generate_everything(loaded: LoadedModel, wire: Wire, stopping: dict[str, Any]) -> None:
    plain = loaded.tokenizer(PLAIN, return_tensors="pt")
    call(loaded, wire, "chat", **loaded.chat(QUESTION))
    call(loaded, wire, "chat again", **loaded.chat(QUESTION))
    call(loaded, wire, "stops", **stopping)
    call(loaded, wire, "plain", **plain)
    torch.manual_seed(0)
    call(
        loaded,
        wire,
        "sampled",
        **plain,
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.9,
        num_return_sequences=2,
        stop_strings=["\n\n\n"],
        tokenizer=loaded.tokenizer,
    )
    call(loaded, wire, "fails", **plain, logits_processor=LogitsProcessorList([Fails()]))


@pytest.fixture(scope="module", params=["grpc", "http"])
def wire(request: pytest.FixtureRequest, smollm2: LoadedModel) -> Wire:
    stopping = stops_at_once(smollm2)
    with exporting(request.param) as pipelines:
        found = Wire(pipelines, {}, [], {}, {})
        generate_everything(smollm2, found, stopping)
        pipelines.flush()
    # Uninstrumented before the first test runs; what was received stays.
    spans = pipelines.receiver.spans()
    callers = {span.span_id: span.name for span in spans if span.scope == "app"}
    for span in spans:
        if span.parent_span_id in callers:
            found.spans[callers[span.parent_span_id]] = span
        elif span.scope != "app":
            found.children.append(span)
    return found


def steps(span: ReceivedSpan) -> list[Event]:
    return [event for event in span.events if event.name == "corevital.step"]


def test_every_call_is_one_span_under_that_of_its_caller(wire: Wire) -> None:
    spans = wire.exporting.receiver.spans()
    callers = {span.name: span for span in spans if span.scope == "app"}

    assert len(spans) - len(wire.children) == 2 * len(wire.measured)
    for name, span in wire.spans.items():
        assert span.parent_span_id == callers[name].span_id
        assert span.trace_id == callers[name].trace_id
        assert span.kind is SpanKind.CLIENT
        assert (span.scope, span.scope_version) == ("corevital", __version__)
        assert span.resource["service.name"] == SERVICE


def test_a_span_lasts_as_long_as_generate(wire: Wire) -> None:
    for name, measured in wire.measured.items():
        span = wire.spans[name]
        assert measured.start_ns <= span.start_ns < span.end_ns <= measured.end_ns, name
    # What is written after the last token, and what else this machine has to do, comes on top.
    lasting = ("chat", "chat again", "plain")
    missing = [
        wire.measured[name].seconds - (wire.spans[name].end_ns - wire.spans[name].start_ns) / 1e9
        for name in lasting
    ]
    assert 0 <= min(missing) < 0.02 + 0.05 * wire.measured["chat"].seconds


def test_standard_attributes_have_the_names_and_types_of_the_conventions(wire: Wire) -> None:
    for span in (*wire.spans.values(), *wire.children):
        for name, value in span.attributes.items():
            if name.startswith("gen_ai."):
                assert name in STANDARD, name
                assert type(value) is STANDARD[name], name
            elif not name.startswith("corevital."):
                assert name == "error.type"


@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("chat", "chat"),
        ("stops", "chat"),
        ("plain", "text_completion"),
        ("fails", "text_completion"),
    ],
)
def test_the_operation_is_chat_where_the_prompt_came_from_a_chat_template(
    name: str, operation: str, wire: Wire, smollm2: LoadedModel
) -> None:
    span = wire.spans[name]
    model = span.attributes[gen_ai.GEN_AI_REQUEST_MODEL]

    assert span.attributes[gen_ai.GEN_AI_OPERATION_NAME] == operation
    assert span.name == f"{operation} {model}"
    assert model == Path(str(smollm2.model.name_or_path)).name
    assert span.attributes[gen_ai.GEN_AI_PROVIDER_NAME] == "huggingface"


def test_request_parameters_are_those_of_the_call(wire: Wire) -> None:
    sampled = wire.spans["sampled"].attributes

    assert sampled[gen_ai.GEN_AI_REQUEST_MAX_TOKENS] == TOKENS
    assert sampled[gen_ai.GEN_AI_REQUEST_TEMPERATURE] == 0.7
    assert sampled[gen_ai.GEN_AI_REQUEST_TOP_K] == 20
    assert sampled[gen_ai.GEN_AI_REQUEST_TOP_P] == 0.9
    assert sampled[gen_ai.GEN_AI_REQUEST_CHOICE_COUNT] == 2
    assert sampled[gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES] == ["\n\n\n"]
    greedy = wire.spans["plain"].attributes
    assert gen_ai.GEN_AI_REQUEST_TEMPERATURE not in greedy
    assert gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES not in greedy


def test_usage_and_steps_are_those_of_the_tokens(wire: Wire, smollm2: LoadedModel) -> None:
    prompts = {
        "chat": smollm2.chat(QUESTION)["input_ids"],
        "plain": smollm2.tokenizer(PLAIN, return_tensors="pt")["input_ids"],
    }
    for name, prompt in prompts.items():
        written = wire.spans[name].attributes
        assert written[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == prompt.shape[1]
        assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == len(wire.tokens[name])
        found = [event.attributes["corevital.step.token.id"] for event in steps(wire.spans[name])]
        assert found == wire.tokens[name]


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("stops", ["stop"]),
        ("plain", ["length"]),
        ("fails", ["error"]),
        ("sampled", ["length", "length"]),
    ],
)
def test_finish_reasons(name: str, reasons: list[str], wire: Wire) -> None:
    assert wire.spans[name].attributes[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == reasons


def test_a_failed_call_says_what_failed_and_keeps_its_steps(wire: Wire) -> None:
    failed = wire.spans["fails"]

    assert failed.status.code is StatusCode.ERROR
    assert failed.status.description == "lost"
    assert failed.attributes["error.type"] == "ConnectionError"
    assert len(steps(failed)) == failed.attributes["corevital.capture.steps"] == 2
    assert all(
        span.status.code is StatusCode.UNSET for name, span in wire.spans.items() if name != "fails"
    )


def test_several_answers_are_children_of_their_call(wire: Wire) -> None:
    sampled = wire.spans["sampled"]

    assert sampled.attributes["corevital.batch.size"] == 2
    assert [child.attributes["corevital.sequence.index"] for child in wire.children] == [0, 1]
    for child in wire.children:
        assert child.parent_span_id == sampled.span_id
        assert child.trace_id == sampled.trace_id
        assert sampled.start_ns <= child.start_ns <= child.end_ns <= sampled.end_ns
        assert "corevital.risk.score" in child.attributes


def test_everything_was_observed(wire: Wire) -> None:
    for span in wire.spans.values():
        for signal in ("logits", "hidden", "attention", "prompt"):
            assert span.attributes[f"corevital.capture.{signal}"] == "captured"
        assert "corevital.capture.failures" not in span.attributes
        assert span.dropped_events == span.dropped_attributes == 0


def test_step_events_lie_in_their_span_in_order(wire: Wire) -> None:
    for span in (*wire.spans.values(), *wire.children):
        times = [event.time_ns for event in steps(span)]
        assert times == sorted(set(times))
        assert all(span.start_ns <= event.time_ns <= span.end_ns for event in span.events)


def test_uncertainty_is_that_of_the_tokens(wire: Wire) -> None:
    for name in ("chat", "plain"):
        written = wire.spans[name].attributes
        surprisals = [e.attributes["corevital.step.surprisal"] for e in steps(wire.spans[name])]
        total, count = sum(surprisals), len(surprisals)
        likelihood = "corevital.uncertainty.negative_log_likelihood"
        assert written[f"{likelihood}.sum"] == pytest.approx(total, rel=1e-5)
        # Where there is no room for both names, the mean surprisal has the shorter one only.
        mean = written["corevital.surprisal.mean"]
        assert mean == pytest.approx(total / count, rel=1e-5)
        assert written.get(f"{likelihood}.per_token", mean) == pytest.approx(mean, rel=1e-6)
        # A token's confidence is at least 0.2 of its probability, at most that and 0.8.
        least = sum(-math.log2(0.2 * 2**-bits + 0.8) for bits in surprisals[1:]) / count
        most = total / count - math.log2(0.2)
        assert least < written["corevital.uncertainty.rauq"] < most


def test_the_generation_is_described(wire: Wire) -> None:
    for span in (*(wire.spans[name] for name in ("chat", "stops", "plain")), *wire.children):
        written = span.attributes
        tokens = written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS]
        told = written["corevital.narrative"]
        assert f"over {tokens} token" in told
        assert f"{written['corevital.risk.level'].capitalize()} risk" in told
        assert len(told.encode()) < 1024
        assert written["corevital.fingerprint.version"] == 2
        vector = dict(zip(NAMES, written["corevital.fingerprint.vector"], strict=True))
        assert vector["entropy_mean"] == pytest.approx(written["corevital.entropy.mean"], rel=1e-5)
        assert written["corevital.consistency.violations"] == []


def test_calls_with_the_same_prompt_have_the_same_prompt_hash(wire: Wire) -> None:
    chat, plain = (
        wire.spans[name].attributes["corevital.prompt.hash"] for name in ("chat", "plain")
    )
    again = wire.spans["chat again"].attributes["corevital.prompt.hash"]
    sampled = [child.attributes["corevital.prompt.hash"] for child in wire.children]

    assert again == chat != plain
    assert sampled == [plain, plain]


def test_every_generation_has_its_evaluation(wire: Wire) -> None:
    by_span = {log.span_id: log for log in wire.logs("gen_ai.evaluation.result")}
    assessed = [span for name, span in wire.spans.items() if name != "sampled"] + wire.children

    assert by_span.keys() == {span.span_id for span in assessed}
    for span in assessed:
        log = by_span[span.span_id]
        assert log.trace_id == span.trace_id
        assert log.severity_number == 9
        written = span.attributes
        assert log.attributes == {
            gen_ai.GEN_AI_EVALUATION_NAME: "corevital.risk",
            gen_ai.GEN_AI_EVALUATION_SCORE_VALUE: written["corevital.risk.score"],
            gen_ai.GEN_AI_EVALUATION_SCORE_LABEL: written["corevital.risk.level"],
            gen_ai.GEN_AI_EVALUATION_EXPLANATION: log.attributes[
                gen_ai.GEN_AI_EVALUATION_EXPLANATION
            ],
        }


def of_histogram(wire: Wire, name: str) -> list[Point]:
    metric = wire.exporting.receiver.metrics()[name]
    assert metric.kind == "histogram"
    return metric.points


def test_metrics_have_their_units_and_advised_boundaries(wire: Wire) -> None:
    found = wire.exporting.receiver.metrics()

    for metric in semconv.METRICS:
        if metric.name in found:
            assert found[metric.name].unit == metric.unit
            assert found[metric.name].description == metric.brief
            for point in found[metric.name].points:
                assert tuple(point.bounds) == metric.buckets
    assert found.keys() >= {
        "corevital.capture.duration",
        "corevital.generation.count",
        "corevital.risk.score",
        "corevital.step.count",
        "gen_ai.client.operation.duration",
        "gen_ai.client.token.usage",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_per_output_token",
        "gen_ai.server.time_to_first_token",
    }
    assert not any(name.startswith("corevital.capture.failure") for name in found)


def test_exemplars_lead_to_the_traces(wire: Wire) -> None:
    known = {(span.trace_id, span.span_id) for span in wire.exporting.receiver.spans()}

    for name, metric in wire.exporting.receiver.metrics().items():
        for point in metric.points:
            assert point.exemplars, name
            assert {(each.trace_id, each.span_id) for each in point.exemplars} <= known, name


def test_server_times_are_those_of_the_calls(wire: Wire) -> None:
    durations = of_histogram(wire, "gen_ai.server.request.duration")
    spans = [(span.end_ns - span.start_ns) / 1e9 for span in wire.spans.values()]
    failed = [point for point in durations if "error.type" in point.attributes]
    calls = sum(point.count for point in durations)

    assert calls == len(spans)
    assert [(point.count, point.attributes["error.type"]) for point in failed] == [
        (1, "ConnectionError")
    ]
    longest = max(point.max or 0 for point in durations)
    assert longest == pytest.approx(max(spans), abs=0.005)
    firsts = of_histogram(wire, "gen_ai.server.time_to_first_token")
    assert sum(point.count for point in firsts) == calls - 1
    each = of_histogram(wire, "gen_ai.server.time_per_output_token")
    expected = wire.spans["chat"].attributes["corevital.time.per_output_token"]
    shortest, longest_each = min(p.min or 0 for p in each), max(p.max or 0 for p in each)
    # The same two times, subtracted and divided in another order.
    rounding = 1e-9
    assert shortest - rounding <= expected <= longest_each + rounding


def everything_received(pipelines: Exporting) -> bytes:
    receiver = pipelines.receiver
    requests = (
        *receiver.requests(TraceRequest),
        *receiver.requests(MetricsRequest),
        *receiver.requests(LogsRequest),
    )
    return b"".join(request.SerializeToString() for request in requests)


def test_no_text_of_prompt_or_answer_is_on_the_wire(wire: Wire, smollm2: LoadedModel) -> None:
    answered = smollm2.tokenizer.decode(wire.tokens["chat"])
    assert "Paris" in answered
    received = everything_received(wire.exporting)

    assert [word for word in CONTENT if word.encode() in received] == []


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_texts_are_on_the_wire_where_they_are_asked_for(
    protocol: str, smollm2: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_and_event")
    with exporting(protocol) as pipelines:
        smollm2.model.generate(**smollm2.chat(QUESTION), max_new_tokens=TOKENS, do_sample=False)
        pipelines.flush()
        (span,) = pipelines.receiver.spans()
        logs = {log.event_name: log for log in pipelines.receiver.logs()}

    *_, asked = json.loads(span.attributes[gen_ai.GEN_AI_INPUT_MESSAGES])
    (answered,) = json.loads(span.attributes[gen_ai.GEN_AI_OUTPUT_MESSAGES])
    assert (asked["role"], asked["parts"][0]["content"]) == ("user", QUESTION)
    assert "Paris" in answered["parts"][0]["content"]
    texts = [event.attributes["corevital.step.token.text"] for event in steps(span)]
    assert answered["parts"][0]["content"] in "".join(texts)
    details = logs["gen_ai.client.inference.operation.details"]
    assert (details.trace_id, details.span_id) == (span.trace_id, span.span_id)
    *_, sent = details.attributes[gen_ai.GEN_AI_INPUT_MESSAGES]
    assert sent["parts"][0]["content"] == QUESTION
