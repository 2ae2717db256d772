"""One call of ``generate`` is one span: what was asked, what came of it, where it belongs."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from opentelemetry import trace
from opentelemetry.context import attach, detach, get_current
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    DEFAULT_ON,
    Sampler,
    TraceIdRatioBased,
)
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    set_span_in_context,
    use_span,
)
from opentelemetry.util.genai.handler import TelemetryHandler
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MaxTimeCriteria,
    StoppingCriteriaList,
)

from corevital import Observed
from tests.instrumentation import (
    attributes,
    counted,
    identity,
    is_observed,
    parent_identity,
    points,
    step_indices,
)
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.comparison import differences
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import PROMPT_TOKENS, STEPS, AtStep, OnToken, greedy

# What was asked for


def test_greedy_decoding_has_no_sampling_parameters(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model)

    (span,) = telemetry.spans()
    asked = {
        name: value
        for name, value in attributes(span).items()
        if name.startswith(("gen_ai.request.", "gen_ai.operation.", "gen_ai.provider."))
    }
    assert span.name == "text_completion LlamaForCausalLM"
    assert span.kind is SpanKind.CLIENT
    assert asked == {
        gen_ai.GEN_AI_OPERATION_NAME: "text_completion",
        gen_ai.GEN_AI_PROVIDER_NAME: "huggingface",
        gen_ai.GEN_AI_REQUEST_MODEL: "LlamaForCausalLM",
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: STEPS,
    }
    assert attributes(span)[gen_ai.GEN_AI_OUTPUT_TYPE] == "text"


@pytest.mark.parametrize("source", ["keywords", "config argument", "model's own config"])
def test_sampling_parameters_are_found_wherever_they_are_set(
    source: str, model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    settings = {"do_sample": True, "temperature": 0.7, "top_k": 11, "top_p": 0.9}
    settings |= {"max_new_tokens": STEPS, "num_return_sequences": 2}
    if source == "keywords":
        model.generate(tiny_prompt(), **settings)
    elif source == "config argument":
        model.generate(tiny_prompt(), generation_config=GenerationConfig(**settings))
    else:
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        model.generate(tiny_prompt())

    written = attributes(telemetry.spans()[-1])
    assert written[gen_ai.GEN_AI_REQUEST_TEMPERATURE] == 0.7
    assert written[gen_ai.GEN_AI_REQUEST_TOP_K] == 11
    assert written[gen_ai.GEN_AI_REQUEST_TOP_P] == 0.9
    assert written[gen_ai.GEN_AI_REQUEST_MAX_TOKENS] == STEPS
    assert written[gen_ai.GEN_AI_REQUEST_CHOICE_COUNT] == 2


def test_a_keyword_counts_more_than_a_config(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    model.generate(tiny_prompt(), generation_config=config, max_new_tokens=2)

    written = attributes(telemetry.spans()[0])
    assert written[gen_ai.GEN_AI_REQUEST_MAX_TOKENS] == 2
    assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == 2


def test_arguments_may_be_given_by_place(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    config = GenerationConfig(max_new_tokens=2, do_sample=False)
    limit = StoppingCriteriaList([MaxTimeCriteria(1000)])
    expected = model.generate(tiny_prompt(), config, None, limit)
    instrument()

    assert torch.equal(model.generate(tiny_prompt(), config, None, limit), expected)
    assert attributes(telemetry.spans()[0])["corevital.capture.steps"] == 2
    assert len(limit) == 1


def test_a_streamed_generation_says_so_and_when_its_first_token_came(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, streamer=OnToken(lambda place: None))

    written = attributes(telemetry.spans()[0])
    assert written[gen_ai.GEN_AI_REQUEST_STREAM] is True
    first = written[gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK]
    assert first == written["corevital.time.first_token"]


# What came of it


def test_usage_counts_the_tokens_of_prompt_and_answer(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, tiny_prompt(tokens=7))

    written = attributes(telemetry.spans()[0])
    assert written[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == 7
    assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == STEPS


def test_usage_counts_no_padding(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    prompt = tiny_prompt(batch=2, tokens=7)
    mask = torch.ones_like(prompt)
    mask[0, :3] = 0
    greedy(model, prompt, attention_mask=mask)

    *sequences, call = telemetry.spans()
    assert attributes(call)[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == 4 + 7
    assert [attributes(span)[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] for span in sequences] == [4, 7]


def test_usage_counts_a_prompt_once_however_many_answers_it_gets(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    torch.manual_seed(0)
    greedy(model, tiny_prompt(tokens=7), do_sample=True, num_return_sequences=3)

    written = attributes(telemetry.spans()[-1])
    assert written[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == 7
    assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == 3 * STEPS


def third_token(model: GenerativeModel) -> int:
    return int(greedy(model)[0, PROMPT_TOKENS + 2])


@pytest.mark.parametrize(
    ("reason", "tokens", "options"),
    [
        ("length", STEPS, {}),
        ("length", STEPS, {"max_new_tokens": None, "max_length": PROMPT_TOKENS + STEPS}),
        ("stop", 3, {"min_new_tokens": None, "eos_token_id": "third"}),
        ("stop", 3, {"min_new_tokens": None, "eos_token_id": "third", "max_new_tokens": 3}),
        ("stop", 1, {"stopping_criteria": StoppingCriteriaList([MaxTimeCriteria(0)])}),
    ],
)
def test_finish_reason(
    reason: str,
    tokens: int,
    options: dict[str, Any],
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    if options.get("eos_token_id") == "third":
        options = options | {"eos_token_id": third_token(model)}
    instrument()
    greedy(model, **options)

    written = attributes(telemetry.spans()[0])
    assert written[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == (reason,)
    assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == tokens
    assert step_indices(telemetry.spans()[0]) == list(range(tokens))


def test_what_generate_returns_stays_what_it_is(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    options: dict[str, Any] = {"return_dict_in_generate": True, "output_logits": True}
    expected = greedy(model, **options)
    instrument()
    found = greedy(model, **options)

    assert type(found) is type(expected)
    assert found.keys() == expected.keys()
    assert torch.equal(found.sequences, expected.sequences)
    assert all(map(torch.equal, found.logits, expected.logits))
    assert telemetry.spans()[0].status.status_code is StatusCode.UNSET


def test_step_times_lie_in_the_span_and_increase(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model, max_new_tokens=20, min_new_tokens=20)

    (span,) = telemetry.spans()
    times = [event.timestamp for event in span.events if event.name == "corevital.step"]
    assert span.start_time is not None
    assert span.end_time is not None
    assert len(times) == 20
    assert all(before < after for before, after in itertools.pairwise(times))
    assert all(span.start_time <= event.timestamp <= span.end_time for event in span.events)


# Where it belongs


def test_the_span_of_the_caller_is_the_parent(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    tracer = telemetry.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("request"):
        greedy(model)

    generation, request = telemetry.spans()
    assert request.name == "request"
    assert parent_identity(generation) == identity(request)


def test_the_context_is_that_of_before_afterwards(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    before = trace.get_current_span()
    inside: list[trace.Span] = []
    greedy(model, streamer=OnToken(lambda place: inside.append(trace.get_current_span())))

    assert trace.get_current_span() is before
    assert {span.get_span_context().span_id for span in inside} == {
        identity(telemetry.spans()[0]).span_id
    }


def test_suppressed_instrumentation_makes_no_span(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    expected = greedy(model)
    instrument()
    observed: list[bool] = []
    with suppress_instrumentation():
        found = greedy(model, streamer=OnToken(lambda place: observed.append(is_observed(model))))

    assert torch.equal(found, expected)
    assert observed == [False] * STEPS
    assert telemetry.spans() == []
    assert telemetry.logs() == []
    assert telemetry.metrics() == {}


# Not sampled


class Sampled:
    """A tracer provider with a sampler and, if given, trace ids in a fixed order."""

    def __init__(self, sampler: Sampler, ids: IdGenerator | None = None) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler, id_generator=ids, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))


def unsampled_parent() -> NonRecordingSpan:
    return NonRecordingSpan(SpanContext(1, 2, is_remote=True, trace_flags=TraceFlags(0)))


@pytest.mark.parametrize("how", ["sampler", "parent"])
def test_a_generation_that_is_not_sampled_is_left_alone(
    how: str, model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    expected = greedy(model)
    sampled = Sampled(ALWAYS_OFF if how == "sampler" else DEFAULT_ON)
    instrument(tracer_provider=sampled.provider)
    observed: list[bool] = []
    around = unsampled_parent() if how == "parent" else trace.INVALID_SPAN
    with use_span(around):
        found = greedy(model, streamer=OnToken(lambda place: observed.append(is_observed(model))))

    assert torch.equal(found, expected)
    assert observed == [False] * STEPS
    assert sampled.exporter.get_finished_spans() == ()
    assert telemetry.logs() == []
    assert counted(telemetry, "corevital.step.count") == 0
    assert "corevital.risk.score" not in telemetry.metrics()


def test_a_generation_that_is_sampled_is_observed_while_it_lasts(
    model: GenerativeModel, instrument: Instrument, telemetry: Telemetry
) -> None:
    instrument()
    observed: list[bool] = []
    greedy(model, streamer=OnToken(lambda place: observed.append(is_observed(model))))

    assert observed == [True] * STEPS
    assert not is_observed(model)


def test_a_generation_that_is_not_sampled_is_timed_all_the_same(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(tracer_provider=Sampled(ALWAYS_OFF).provider)
    greedy(model)

    for name in (
        "gen_ai.client.operation.duration",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    ):
        (point,) = points(telemetry.metrics()[name])
        assert point.exemplars == []


def test_the_parts_of_a_generation_that_is_not_sampled_are_not_its_parents(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with use_span(unsampled_parent()):
        greedy(model)
    greedy(model)

    (span,) = telemetry.spans()
    assert span.parent is None
    assert counted(telemetry, "corevital.step.count") == STEPS


class FixedTraceIds(RandomIdGenerator):
    """Random span ids, and the trace ids that it is given."""

    def __init__(self, trace_ids: Iterator[int]) -> None:
        self._trace_ids = trace_ids

    def generate_trace_id(self) -> int:
        return next(self._trace_ids)


def trace_ids(count: int) -> list[int]:
    generator = torch.Generator().manual_seed(7)
    words = torch.randint(1, 2**32, (count, 4), generator=generator).tolist()
    return [sum(word << 32 * place for place, word in enumerate(row)) for row in words]


def captured_by_trace(
    sampler: Sampler,
    ratio: float,
    ids: list[int],
    model: GenerativeModel,
    instrument: Instrument,
) -> dict[int, bool]:
    """Of each exported trace, whether its generation was observed from inside."""
    sampled = Sampled(sampler, FixedTraceIds(iter(ids)))
    instrumentor = instrument(tracer_provider=sampled.provider, capture_ratio=ratio)
    for _ in ids:
        greedy(model, max_new_tokens=1, min_new_tokens=1)
    instrumentor.uninstrument()
    return {
        identity(span).trace_id: "corevital.risk.score" in attributes(span)
        for span in sampled.exporter.get_finished_spans()
    }


def test_a_capture_ratio_of_zero_observes_nothing_and_traces_everything(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    expected = greedy(model)
    instrument(capture_ratio=0.0)
    observed: list[bool] = []
    found = greedy(model, streamer=OnToken(lambda place: observed.append(is_observed(model))))

    assert torch.equal(found, expected)
    assert observed == [False] * STEPS
    (span,) = telemetry.spans()
    own = {n: v for n, v in attributes(span).items() if n.startswith("corevital.")}
    assert own == {
        "corevital.capture.mode": "off",
        **{
            f"corevital.capture.{signal}": "unavailable: capture is off"
            for signal in ("logits", "hidden", "attention", "prompt")
        },
    }
    assert attributes(span)[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == STEPS
    assert span.events == ()
    assert telemetry.logs() == []
    assert counted(telemetry, "corevital.generation.count") == 1
    assert counted(telemetry, "corevital.step.count") == 0


def test_a_capture_ratio_chooses_the_same_traces_every_time(
    model: GenerativeModel, instrument: Instrument
) -> None:
    ids = trace_ids(60)
    first = captured_by_trace(DEFAULT_ON, 0.5, ids, model, instrument)
    second = captured_by_trace(DEFAULT_ON, 0.5, ids[::-1], model, instrument)
    more = captured_by_trace(DEFAULT_ON, 0.8, ids, model, instrument)

    assert first == second
    assert 18 <= sum(first.values()) <= 42
    assert {id_ for id_ in ids if first[id_]} < {id_ for id_ in ids if more[id_]}


def test_a_capture_ratio_is_independent_of_the_sampler(
    model: GenerativeModel, instrument: Instrument
) -> None:
    ids = trace_ids(120)
    found = captured_by_trace(TraceIdRatioBased(0.5), 0.5, ids, model, instrument)

    assert 36 <= len(found) <= 84
    assert 0.25 <= sum(found.values()) / len(found) <= 0.75


def test_all_generations_of_one_trace_are_observed_or_none(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(capture_ratio=0.5)
    tracer = telemetry.tracer_provider.get_tracer("app")
    for _ in range(12):
        with tracer.start_as_current_span("request"):
            for _ in range(3):
                greedy(model, max_new_tokens=1, min_new_tokens=1)

    by_trace: dict[int, set[str]] = {}
    for span in telemetry.spans():
        if span.name != "request":
            mode = attributes(span)["corevital.capture.mode"]
            by_trace.setdefault(identity(span).trace_id, set()).add(mode)
    assert len(by_trace) == 12
    assert all(len(modes) == 1 for modes in by_trace.values())


# One generation inside another


def recorded(model: GenerativeModel, prompt: torch.Tensor, instrument: Instrument) -> Observed:
    """What there is to see when this is generated by itself."""
    seen: list[Observed] = []
    instrumentor = instrument(on_generation=seen.append)
    greedy(model, prompt)
    instrumentor.uninstrument()
    return seen[0]


@pytest.mark.parametrize("how", ["streamer", "logits processor"])
@pytest.mark.parametrize("inner_family", ["llama", "gpt2"])
def test_a_generation_inside_another_has_its_own_span_and_record(
    inner_family: str,
    how: str,
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
) -> None:
    inner_model = model if inner_family == "llama" else tiny_model(inner_family)
    inner_prompt = tiny_prompt(tokens=6, seed=3)
    expected_inner = recorded(inner_model, inner_prompt, instrument).record
    expected_outer = recorded(model, tiny_prompt(), instrument).record
    telemetry.span_exporter.clear()
    seen: list[Observed] = []
    instrument(on_generation=seen.append)

    def inside(place: int = 2) -> None:
        if place == 2:
            greedy(inner_model, inner_prompt)

    if how == "streamer":
        greedy(model, streamer=OnToken(inside))
    else:
        greedy(model, logits_processor=LogitsProcessorList([AtStep(2, inside)]))

    inner_span, outer_span = telemetry.spans()
    inner, outer = seen
    assert parent_identity(inner_span) == identity(outer_span)
    assert (inner.trace_id, inner.span_id) == identity(inner_span)
    assert (outer.trace_id, outer.span_id) == identity(outer_span)
    assert differences(inner.record, expected_inner) == []
    assert differences(outer.record, expected_outer) == []
    for span, prompt_tokens in ((inner_span, 6), (outer_span, PROMPT_TOKENS)):
        assert step_indices(span) == list(range(STEPS))
        assert attributes(span)[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == prompt_tokens


def test_a_generation_inside_one_that_cannot_be_observed_is_observed(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    expected = recorded(model, tiny_prompt(seed=3), instrument).record
    telemetry.span_exporter.clear()
    seen: list[Observed] = []
    instrument(on_generation=seen.append)

    def retrieving(_: GenerativeModel, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        greedy(model, tiny_prompt(seed=3))
        return input_ids

    greedy(tiny_model("llama", seed=1), custom_generate=retrieving)

    inner, outer = seen
    assert differences(inner.record, expected) == []
    assert outer.assessment is None
    assert parent_identity(telemetry.spans()[0]) == identity(telemetry.spans()[1])


# Inside the span of another instrumentation


def outer_handler(telemetry: Telemetry) -> TelemetryHandler:
    return TelemetryHandler(
        telemetry.tracer_provider,
        telemetry.meter_provider,
        telemetry.logger_provider,
        instrumentation_scope_name="outer",
    )


def test_the_span_of_an_outer_instrumentation_is_enriched(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with outer_handler(telemetry).inference("agent-framework", request_model="alias") as outer:
        outer.temperature = 0.3
        greedy(model)

    (span,) = telemetry.spans()
    written = attributes(span)
    assert span.name == "chat alias"
    assert written[gen_ai.GEN_AI_PROVIDER_NAME] == "agent-framework"
    assert written[gen_ai.GEN_AI_REQUEST_TEMPERATURE] == 0.3
    assert written[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == PROMPT_TOKENS
    assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == STEPS
    assert written[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert "corevital.risk.score" in written
    assert step_indices(span) == list(range(STEPS))
    (point,) = points(telemetry.metrics()["gen_ai.client.operation.duration"])
    assert getattr(point, "count", None) == 1
    assert counted(telemetry, "corevital.step.count") == STEPS
    (log,) = telemetry.logs()
    assert log.log_record.span_id == identity(span).span_id


def test_the_outer_span_is_enriched_when_the_generation_fails(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()

    def fail() -> None:
        raise LookupError("no room")

    with (
        pytest.raises(LookupError, match="no room"),
        outer_handler(telemetry).inference("agent-framework"),
    ):
        greedy(model, logits_processor=LogitsProcessorList([AtStep(3, fail)]))

    (span,) = telemetry.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "LookupError"
    assert step_indices(span) == [0, 1, 2]


def test_a_generation_inside_an_enriched_one_has_its_own_span(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    inside = AtStep(2, lambda: greedy(model, tiny_prompt(tokens=6), max_new_tokens=5))
    with outer_handler(telemetry).inference("agent-framework", request_model="alias"):
        greedy(model, logits_processor=LogitsProcessorList([inside]))

    inner, outer = telemetry.spans()
    assert outer.name == "chat alias"
    assert parent_identity(inner) == identity(outer)
    assert attributes(inner)[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == 6
    assert attributes(outer)[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == PROMPT_TOKENS
    assert step_indices(outer) == list(range(STEPS))


def test_generations_after_an_outer_call_have_their_own_spans(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with outer_handler(telemetry).inference("agent-framework"):
        greedy(model)
    greedy(model)

    assert len(telemetry.spans()) == 2
    assert telemetry.spans()[1].parent is None


# Several at once


def test_threads_on_one_model_have_their_own_correct_records(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    prompts = [tiny_prompt(tokens=4 + seed, seed=seed) for seed in range(4)]
    expected = [recorded(model, prompt, instrument).record for prompt in prompts]
    telemetry.span_exporter.clear()
    seen: dict[int, list[Observed]] = {}
    instrument(on_generation=lambda o: seen.setdefault(threading.get_ident(), []).append(o))
    together = threading.Barrier(len(prompts))
    found: dict[int, list[Observed]] = {}

    def work(index: int) -> None:
        together.wait(60)
        for _ in range(5):
            # Each token waits for those of the other threads, so that the steps interleave.
            greedy(model, prompts[index], streamer=OnToken(lambda place: together.wait(60)))
        found[index] = seen[threading.get_ident()]

    threads = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for index, record in enumerate(expected):
        assert [differences(each.record, record) for each in found[index]] == [[]] * 5
    assert len(telemetry.spans()) == 5 * len(prompts)
    assert {span.parent for span in telemetry.spans()} == {None}
    assert not is_observed(model)


def test_a_thread_continues_the_trace_of_the_context_it_is_given(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    tracer = telemetry.tracer_provider.get_tracer("app")
    with tracer.start_as_current_span("request") as request:
        context = set_span_in_context(request, get_current())

        def work() -> None:
            token = attach(context)
            greedy(model)
            detach(token)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    generation, around = telemetry.spans()
    assert parent_identity(generation) == identity(around)
