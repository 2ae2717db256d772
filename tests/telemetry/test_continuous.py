"""Continuous batching: a span with a record for each request, and the same results as ever."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics.export import NumberDataPoint
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import StatusCode

from corevital import Observed
from corevital.capture import continuous_batch
from corevital.capture.continuous_logits import BatchLogits
from corevital.record import GenerationRecord
from corevital.telemetry.continuous_request import RequestSpan
from tests.batching import (
    IS_CURRENT,
    NEW_TOKENS,
    PROMPTS,
    Tokens,
    generate_batch,
    only_current,
    started,
)
from tests.instrumentation import attributes, counted, identity, instrumented, parent_identity
from tests.instrumentation import points as points_of
from tests.models import GenerativeModel, tiny_model
from tests.providers import Telemetry

SECONDS = 30


@pytest.fixture(scope="module")
def model() -> GenerativeModel:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def plain(model: GenerativeModel) -> Tokens:
    return generate_batch(model)


def by_prompt(spans: list[ReadableSpan]) -> dict[int, dict[str, Any]]:
    """The attributes of requests' spans by the length of their prompts."""
    found = [attributes(span) for span in spans]
    return {each["gen_ai.usage.input_tokens"]: each for each in found}


class Records:
    """A listener that keeps what it is called with."""

    def __init__(self) -> None:
        self.observed: list[Observed] = []

    def __call__(self, observed: Observed) -> None:
        self.observed.append(observed)

    def of(self, prompt: list[int]) -> GenerationRecord:
        (found,) = [o.record for o in self.observed if o.record.prompt_tokens == len(prompt)]
        return found


@torch.no_grad()
def recomputed(model: GenerativeModel, prompt: list[int], tokens: list[int]) -> Any:
    """Entropy and surprisal in bits ``[2, S]`` of the tokens after the prompt."""
    model.set_attn_implementation("sdpa")
    logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    log = torch.log_softmax(logits.double(), dim=-1) / torch.log(torch.tensor(2.0))
    surprisal = -log.gather(-1, torch.tensor(tokens).unsqueeze(-1)).squeeze(-1)
    return torch.stack((-(log.exp2() * log).sum(-1), surprisal)).numpy()


def check_columns(model: GenerativeModel, records: Records, prompts: list[list[int]]) -> None:
    for prompt in prompts:
        record = records.of(prompt)
        assert record.logits is not None
        entropy, surprisal = recomputed(model, prompt, record.token_ids.tolist())
        assert record.logits.entropy == pytest.approx(entropy, abs=1e-3)
        assert record.logits.surprisal == pytest.approx(surprisal, abs=1e-3)
        assert ((record.logits.margin > 0) & (record.logits.top_k_mass < 1)).all()


# The same results


def test_the_tokens_are_the_same_and_every_request_has_a_span(
    model: GenerativeModel, plain: Tokens, telemetry: Telemetry
) -> None:
    with instrumented(telemetry):
        tracer = telemetry.tracer_provider.get_tracer("app")
        with tracer.start_as_current_span("request") as parent:
            tokens = generate_batch(model)

    assert tokens == plain
    *requests, caller = telemetry.spans()
    assert caller.name == "request"
    assert {span.name for span in requests} == {"text_completion LlamaForCausalLM"}
    assert {parent_identity(span) for span in requests} == {identity(parent)}  # type: ignore[arg-type]
    found = by_prompt(requests)
    assert found.keys() == {len(prompt) for prompt in PROMPTS}
    for written in found.values():
        assert written["gen_ai.usage.output_tokens"] == NEW_TOKENS
        assert written["gen_ai.request.max_tokens"] == NEW_TOKENS
        assert written["gen_ai.response.finish_reasons"] == ("length",)
        assert written["corevital.capture.logits"] == "captured"
        assert written["corevital.capture.steps"] == NEW_TOKENS
        assert 0 <= written["corevital.risk.score"] <= 1
        for signal in ("hidden", "attention", "prompt"):
            assert "continuous batching" in written[f"corevital.capture.{signal}"]


def test_spans_last_from_being_added_to_the_last_token(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    records = Records()
    with instrumented(telemetry, on_generation=records):
        generate_batch(model)

    spans = {identity(span).span_id: span for span in telemetry.spans()}
    for observed in records.observed:
        span, record = spans[observed.span_id], observed.record
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= record.start_time_ns
        assert span.end_time == record.end_time_ns
        times = record.step_time_ns.tolist()
        assert times == sorted(times)
        assert span.start_time <= times[0] <= times[-1] <= span.end_time
        assert all(span.start_time <= event.timestamp <= span.end_time for event in span.events)


def test_columns_are_those_of_the_models_own_logits(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    records = Records()
    with instrumented(telemetry, on_generation=records):
        tokens = generate_batch(model)

    assert sorted(observed.record.token_ids.tolist() for observed in records.observed) == sorted(
        tokens.values()
    )
    check_columns(model, records, PROMPTS)


@only_current
def test_columns_are_right_when_prompts_are_split_over_batches(
    model: GenerativeModel, plain: Tokens, telemetry: Telemetry
) -> None:
    records = Records()
    with instrumented(telemetry, on_generation=records):
        tokens = generate_batch(model, sizes={"max_batch_tokens": 7})

    assert tokens == plain
    check_columns(model, records, PROMPTS)


@only_current
def test_columns_are_right_when_requests_are_put_back_for_want_of_room(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    sizes = {"num_blocks": 3, "page_size": 8, "max_batch_tokens": 64}
    prompts = [prompt[:5] + [20 + place] * place for place, prompt in enumerate(PROMPTS)]
    plain = generate_batch(model, prompts, sizes, max_new_tokens=14)
    records = Records()
    with instrumented(telemetry, on_generation=records):
        tokens = generate_batch(model, prompts, sizes, max_new_tokens=14)

    assert tokens == plain
    assert sorted(observed.record.token_ids.tolist() for observed in records.observed) == sorted(
        tokens.values()
    )
    check_columns(model, records, prompts)


@only_current
def test_sampling_draws_the_same_tokens_and_columns_stay_those_before_processing(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    sizes = {"seed": 7}
    options: dict[str, Any] = {"do_sample": True, "temperature": 3.0, "top_k": 20}
    plain = generate_batch(model, sizes=sizes, **options)
    records = Records()
    with instrumented(telemetry, on_generation=records):
        tokens = generate_batch(model, sizes=sizes, **options)

    assert tokens == plain
    check_columns(model, records, PROMPTS)
    written = attributes(telemetry.spans()[0])
    assert (written["gen_ai.request.temperature"], written["gen_ai.request.top_k"]) == (3.0, 20)


def test_the_random_state_is_left_as_ever(model: GenerativeModel, telemetry: Telemetry) -> None:
    def state_after() -> torch.Tensor:
        torch.manual_seed(0)
        generate_batch(model, PROMPTS[:1], {"seed": 7} if IS_CURRENT else None)
        return torch.get_rng_state()

    plain = state_after()
    with instrumented(telemetry):
        assert torch.equal(state_after(), plain)


@only_current
def test_every_answer_to_a_prompt_has_a_span(model: GenerativeModel, telemetry: Telemetry) -> None:
    options: dict[str, Any] = {"num_return_sequences": 2, "do_sample": True}
    plain = generate_batch(model, sizes={"seed": 3}, **options)
    records = Records()
    with instrumented(telemetry, on_generation=records):
        tokens = generate_batch(model, sizes={"seed": 3}, **options)

    assert tokens == plain
    assert len(plain) == 2 * len(PROMPTS)
    assert sorted(observed.record.token_ids.tolist() for observed in records.observed) == sorted(
        tokens.values()
    )
    assert all(observed.record.logits is not None for observed in records.observed)


def results(manager: Any, until: Callable[[list[Any]], bool]) -> list[Any]:
    found: list[Any] = []
    while not until(found):
        result = manager.get_result(timeout=SECONDS)
        assert result is not None
        found.append(result)
    return found


@only_current
def test_streamed_results_are_the_same(
    model: GenerativeModel, plain: Tokens, telemetry: Telemetry
) -> None:
    def streamed() -> list[list[int]]:
        with started(model) as manager:
            manager.add_request(PROMPTS[0], max_new_tokens=4, streaming=True)
            found = results(manager, lambda got: bool(got) and got[-1].is_finished())
            return [list(result.generated_tokens) for result in found]

    alone = streamed()
    with instrumented(telemetry):
        assert streamed() == alone
    (span,) = telemetry.spans()
    written = attributes(span)
    assert written["gen_ai.request.stream"] is True
    assert written["gen_ai.response.time_to_first_chunk"] > 0
    assert alone[-1] == plain["req_0"][:4]


def test_an_end_token_ends_a_request_with_stop(
    model: GenerativeModel, plain: Tokens, telemetry: Telemetry
) -> None:
    end = plain["req_0"][2]
    with instrumented(telemetry):
        tokens = generate_batch(model, PROMPTS[:1], eos_token_id=end)

    (span,) = telemetry.spans()
    assert tokens["req_0"] == plain["req_0"][:3]
    assert attributes(span)["gen_ai.response.finish_reasons"] == ("stop",)


# Requests that do not finish


def test_a_cancelled_request_ends_with_what_it_had(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    with instrumented(telemetry):
        with started(model, {"num_blocks": 64}, max_new_tokens=500) as manager:
            cancelled = manager.add_request(PROMPTS[0], max_new_tokens=500)
            other = manager.add_request(PROMPTS[1], max_new_tokens=4)
            (result,) = results(manager, bool)
            manager.cancel_request(cancelled)
            again = manager.add_request(PROMPTS[2], max_new_tokens=2)
            (last,) = results(manager, bool)
        assert (result.request_id, last.request_id) == (other, again)

    found = by_prompt(telemetry.spans())
    cancelled_span = found[len(PROMPTS[0])]
    assert cancelled_span["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert 4 <= cancelled_span["gen_ai.usage.output_tokens"] < 500
    assert cancelled_span["corevital.capture.logits"] == "captured"
    assert found[len(PROMPTS[1])]["gen_ai.response.finish_reasons"] == ("length",)


class Broken(Exception):
    """What a broken model raises."""


def test_a_failing_model_fails_its_requests_as_ever(telemetry: Telemetry) -> None:
    def failing() -> Tokens:
        model = tiny_model("llama")
        steps = iter(range(100))

        def fail(*_: Any) -> None:
            if next(steps) == 3:
                raise Broken("at step 3")

        model.register_forward_pre_hook(fail)
        return generate_batch(model)

    plain = failing()
    with instrumented(telemetry):
        assert failing() == plain
    for span in telemetry.spans():
        written = attributes(span)
        assert span.status.status_code is StatusCode.ERROR
        assert written["error.type"].endswith("Broken")
        assert written["gen_ai.response.finish_reasons"] == ("error",)
        assert written["gen_ai.usage.output_tokens"] == 3
    assert len(telemetry.spans()) == len(PROMPTS)


def test_a_request_that_is_not_taken_raises_and_ends(
    model: GenerativeModel, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise queue.Full

    with instrumented(telemetry), started(model) as manager:
        monkeypatch.setattr(manager.input_queue, "put", full)
        with pytest.raises(queue.Full):
            manager.add_request(PROMPTS[0])
    (span,) = telemetry.spans()
    assert attributes(span)["error.type"].endswith("Full")


def test_a_request_to_a_manager_that_never_starts_ends_when_it_stops(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    with instrumented(telemetry):
        with started(model) as manager:
            manager.add_request(PROMPTS[0], max_new_tokens=2)
            results(manager, bool)
        if IS_CURRENT:
            assert manager.add_request(PROMPTS[1]) is None
        else:
            manager.add_request(PROMPTS[1])
            manager.stop(block=True)

    assert len(telemetry.spans()) == (1 if IS_CURRENT else 2)


# Switching off, and failing


def test_suppressed_requests_have_no_span(
    model: GenerativeModel, plain: Tokens, telemetry: Telemetry
) -> None:
    with instrumented(telemetry), suppress_instrumentation():
        assert generate_batch(model) == plain
    assert telemetry.spans() == []


def test_switching_off_ends_the_spans_and_the_requests_go_on(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    with instrumented(telemetry) as instrumentor, started(model, {"num_blocks": 64}) as manager:
        manager.add_request(PROMPTS[0], max_new_tokens=300)
        manager.add_request(PROMPTS[1], max_new_tokens=2)
        results(manager, bool)
        instrumentor.uninstrument()
        assert len(telemetry.spans()) == 2
        (last,) = results(manager, bool)

    assert len(last.generated_tokens) == 300
    assert last.status.name == "FINISHED"
    assert len(telemetry.spans()) == 2


def test_a_failure_of_corevitals_own_changes_nothing(
    model: GenerativeModel,
    plain: Tokens,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken reduction")

    monkeypatch.setattr(continuous_batch, "_already_logged", set())
    monkeypatch.setattr(BatchLogits, "reduce", broken)
    with instrumented(telemetry), caplog.at_level(logging.WARNING, logger="corevital"):
        assert generate_batch(model) == plain

    own = [record for record in caplog.records if record.name.startswith("corevital")]
    assert len(own) == 1
    assert counted(telemetry, "corevital.capture.failure.count", signal="logits") == len(PROMPTS)
    for written in by_prompt(telemetry.spans()).values():
        assert written["corevital.capture.logits"] == "unavailable: RuntimeError: broken reduction"
        assert written["gen_ai.usage.output_tokens"] == NEW_TOKENS


@pytest.mark.parametrize("part", ["__init__", "_deliver", "_records"])
def test_a_failing_span_changes_nothing(
    part: str,
    model: GenerativeModel,
    plain: Tokens,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("broken span")

    monkeypatch.setattr(RequestSpan, part, broken)
    with instrumented(telemetry):
        assert generate_batch(model) == plain

    assert counted(telemetry, "corevital.capture.failure.count") == len(PROMPTS)
    assert len(telemetry.spans()) == (len(PROMPTS) if part == "_records" else 0)


# Settings


@pytest.mark.parametrize("setting", [{"capture": "off"}, {"capture_ratio": 0}])
def test_nothing_is_reduced_where_nothing_is_to_be_observed(
    setting: dict[str, Any],
    model: GenerativeModel,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delattr(BatchLogits, "reduce")
    with instrumented(telemetry, **setting):
        generate_batch(model)

    for written in by_prompt(telemetry.spans()).values():
        assert written["corevital.capture.logits"] == "unavailable: capture is off"
        assert written["gen_ai.usage.output_tokens"] == NEW_TOKENS
    assert "corevital.capture.failure.count" not in telemetry.metrics()


@pytest.mark.parametrize("capture", ["full", "summary", "on_risk"])
def test_every_other_mode_has_the_logits(
    capture: str, model: GenerativeModel, telemetry: Telemetry
) -> None:
    with instrumented(telemetry, capture=capture, step_events="log"):
        generate_batch(model, PROMPTS[:1])

    (span,) = telemetry.spans()
    assert attributes(span)["corevital.capture.mode"] == capture
    assert attributes(span)["corevital.capture.logits"] == "captured"
    steps = [log for log in telemetry.logs() if log.log_record.event_name == "corevital.step"]
    assert len(steps) == NEW_TOKENS
    assert {log.log_record.span_id for log in steps} == {identity(span).span_id}


def test_a_manager_that_ran_before_is_observed_from_its_next_start(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    with started(model) as manager, instrumented(telemetry):
        manager.add_request(PROMPTS[0], max_new_tokens=2)
        results(manager, bool)
        manager.stop(block=True, timeout=SECONDS)
        assert telemetry.spans() == []
        if IS_CURRENT:
            manager.start()
            manager.add_request(PROMPTS[1], max_new_tokens=2)
            results(manager, bool)
            manager.stop(block=True, timeout=SECONDS)
            assert by_prompt(telemetry.spans()).keys() == {len(PROMPTS[1])}


# Metrics


def test_requests_are_timed_as_generations_are(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    with instrumented(telemetry):
        generate_batch(model)

    metrics = telemetry.metrics()
    for name in (
        "gen_ai.client.operation.duration",
        "gen_ai.server.request.duration",
        "gen_ai.server.time_to_first_token",
        "gen_ai.server.time_per_output_token",
    ):
        (point,) = points_of(metrics[name])
        assert point.count == len(PROMPTS)  # type: ignore[union-attr]
        attributes_ = dict(point.attributes or {})
        assert attributes_["gen_ai.request.model"] == "LlamaForCausalLM"
    assert counted(telemetry, "corevital.step.count") == len(PROMPTS) * NEW_TOKENS


def gauge(telemetry: Telemetry, area: str, attribute: str | None = None) -> dict[Any, float]:
    """The values of a gauge, by one of its attributes."""
    prefix = "corevital.continuous_batching."
    metric = telemetry.metrics().get(prefix + area)
    found = {}
    for point in points_of(metric) if metric is not None else ():
        assert isinstance(point, NumberDataPoint)
        written = dict(point.attributes or {})
        assert written["gen_ai.request.model"] == "LlamaForCausalLM"
        found[attribute and written[prefix + attribute]] = point.value
    return found


class Held:
    """Gauges as they are read while a batch is being computed, once."""

    def __init__(self, telemetry: Telemetry, at_step: int) -> None:
        self._telemetry = telemetry
        self._steps = iter(range(at_step + 1))
        self._last = at_step
        self.requests: dict[Any, float] = {}
        self.blocks: dict[Any, float] = {}
        self.fill: dict[Any, float] = {}

    def __call__(self, *_: Any) -> None:
        if next(self._steps, None) == self._last:
            self.requests = gauge(self._telemetry, "request.count", "request.state")
            self.blocks = gauge(self._telemetry, "kv_cache.block.count", "kv_cache.state")
            self.fill = gauge(self._telemetry, "batch.fill")


@pytest.fixture
def held(telemetry: Telemetry) -> Iterator[Held]:
    model = tiny_model("llama")
    held = Held(telemetry, at_step=2)
    model.register_forward_pre_hook(held)
    with instrumented(telemetry):
        generate_batch(model, sizes={"max_batch_tokens": 40})
        yield held


def test_gauges_tell_how_busy_the_manager_is(held: Held, telemetry: Telemetry) -> None:
    assert held.requests == {"active": 3, "waiting": 0}
    assert held.blocks["used"] >= 3
    assert held.blocks["used"] + held.blocks["free"] >= 16
    assert held.fill == {None: 3 / 40}


def test_gauges_show_nothing_without_a_manager(
    model: GenerativeModel, telemetry: Telemetry
) -> None:
    with instrumented(telemetry):
        assert gauge(telemetry, "request.count", "request.state") == {}
        with started(model) as manager:
            manager.add_request(PROMPTS[0], max_new_tokens=2)
            results(manager, bool)
            while manager.batch_processor.scheduler.active_requests:
                pass
            assert gauge(telemetry, "request.count", "request.state") == {"active": 0, "waiting": 0}
            assert gauge(telemetry, "batch.fill") == {None: 0}
    assert gauge(telemetry, "request.count", "request.state") == {}


@only_current
def test_passes_that_cannot_be_seen_are_said_to_be(
    model: GenerativeModel, plain: Tokens, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.generation.continuous_batching.model_runner import ModelRunner

    # As with compiled passes or CUDA graphs, but without the time to compile.
    always = property(lambda _: True, lambda _, value: None)
    monkeypatch.setattr(ModelRunner, "pad_inputs", always, raising=False)
    with instrumented(telemetry), started(model) as manager:
        manager.add_request(PROMPTS[0])
        (result,) = results(manager, bool)

    assert result.generated_tokens == plain["req_0"]
    written = attributes(telemetry.spans()[0])
    assert written["corevital.capture.logits"].startswith("unavailable: forward passes are compi")
    assert written["gen_ai.usage.output_tokens"] == NEW_TOKENS
