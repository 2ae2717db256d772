"""``generate`` returns and raises what it would by itself, whatever happens around or inside it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk._logs import LogRecordProcessor, ReadWriteLogRecord
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult
from opentelemetry.trace import Span, StatusCode
from transformers import (
    LogitsProcessorList,
    StoppingCriteriaList,
)

from corevital import CoreVitalSpanProcessor, Observed
from corevital.assess.assessment import Assessment
from corevital.capture import observed_signals
from corevital.telemetry.handover import Delivery
from tests.instrumentation import (
    attributes,
    counted,
    identity,
    is_observed,
    points,
    step_indices,
)
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import STEPS, AfterStep, AtStep, OnToken, greedy
from tests.telemetry.odd_attention import REASON, odd_attention
from tests.telemetry.test_generation import Sampled

FAILURES = "corevital.capture.failure.count"


class Interrupted(Exception):
    """An exception of the application's own."""


@pytest.fixture(autouse=True)
def own_log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each failure is logged once in a process; here, once in a test."""
    monkeypatch.setattr(observed_signals, "_already_logged", set())
    caplog.set_level(logging.WARNING, "corevital")


def warnings_of_corevital(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name.startswith("corevital")]


# Exceptions of the application


def raising(error: BaseException) -> Callable[..., None]:
    def act(*args: Any) -> None:
        raise error

    return act


def at_third_step(where: str, act: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of ``generate`` that call a function around the third token."""
    if where == "logits processor":
        return {"logits_processor": LogitsProcessorList([AtStep(2, act)])}
    if where == "stopping criterion":
        return {"stopping_criteria": StoppingCriteriaList([AfterStep(2, act)])}
    return {"streamer": OnToken(lambda place: act() if place == 2 else None)}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("too long"),
        RuntimeError("out of memory"),
        Interrupted("by the application"),
        KeyboardInterrupt(),
        SystemExit(3),
        StopIteration("odd"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("where", ["streamer", "stopping criterion", "logits processor"])
def test_an_exception_inside_reaches_the_caller_and_its_span(
    where: str,
    error: BaseException,
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
    caplog: pytest.LogCaptureFixture,
) -> None:
    instrument()
    with pytest.raises(type(error)) as raised:
        greedy(model, **at_third_step(where, raising(error)))

    assert raised.value is error
    assert raised.value.__cause__ is None
    assert raised.value.__context__ is None
    (span,) = telemetry.spans()
    written = attributes(span)
    assert span.status.status_code is StatusCode.ERROR
    assert (span.status.description or "") == str(error)
    assert written["error.type"].rpartition(".")[2] == type(error).__name__
    assert written["gen_ai.response.finish_reasons"] == ("error",)
    # The third token is known where it is chosen before the exception is raised.
    assert step_indices(span) in ([0, 1], [0, 1, 2])
    assert written["gen_ai.usage.output_tokens"] == len(step_indices(span))
    assert "corevital.risk.score" in written
    assert not is_observed(model)
    assert warnings_of_corevital(caplog) == []
    assert counted(telemetry, FAILURES) == 0


def test_an_exception_before_the_first_token_leaves_a_span_without_observations(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    error = Interrupted()
    with pytest.raises(Interrupted) as raised:
        greedy(model, logits_processor=LogitsProcessorList([AtStep(0, raising(error))]))

    assert raised.value is error
    (span,) = telemetry.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["corevital.capture.logits"] == "unavailable: no token was generated"
    assert "corevital.risk.score" not in attributes(span)


@pytest.mark.parametrize(
    "options", [{"max_new_tokens": -1}, {"no_such_argument": 1}, {"penalty_alpha": 0.6, "top_k": 4}]
)
def test_arguments_that_generate_refuses_are_refused_in_the_same_words(
    options: dict[str, Any], model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    with pytest.raises(Exception, match=r".") as by_itself:
        greedy(model, **options)
    instrument()
    with pytest.raises(type(by_itself.value)) as raised:
        greedy(model, **options)

    assert type(raised.value) is type(by_itself.value)
    assert str(raised.value) == str(by_itself.value)
    (span,) = telemetry.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"].rpartition(".")[2] == type(raised.value).__name__


def test_a_wrong_call_is_a_type_error_as_before(
    model: GenerativeModel, instrument: Instrument
) -> None:
    instrument()
    with pytest.raises(TypeError):
        model.generate(tiny_prompt(), *[None] * 20)


def test_the_error_type_is_the_same_on_spans_and_metrics(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with pytest.raises(Interrupted):
        greedy(model, **at_third_step("logits processor", raising(Interrupted())))

    expected = attributes(telemetry.spans()[0])["error.type"]
    for name in ("gen_ai.client.operation.duration", "gen_ai.server.request.duration"):
        (point,) = points(telemetry.metrics()[name])
        assert dict(point.attributes or {})["error.type"] == expected, name


def test_a_failed_request_has_no_time_to_first_token(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with pytest.raises(Interrupted):
        greedy(model, **at_third_step("logits processor", raising(Interrupted())))

    # The conventions define both for successful responses.
    assert "gen_ai.server.time_to_first_token" not in telemetry.metrics()
    assert "gen_ai.server.time_per_output_token" not in telemetry.metrics()


def test_a_generation_after_a_failed_one_is_its_own(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with pytest.raises(Interrupted):
        greedy(model, **at_third_step("streamer", raising(Interrupted())))
    greedy(model)

    succeeded = telemetry.spans()[1]
    assert succeeded.parent is None
    assert succeeded.status.status_code is StatusCode.UNSET
    assert step_indices(succeeded) == list(range(STEPS))


# Failures of observing


def test_an_attention_that_cannot_be_read_changes_no_token(
    telemetry: Telemetry, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    instrument()
    with odd_attention() as name:
        model = tiny_model("llama", attn_implementation=name)
        with suppress_instrumentation():
            expected = greedy(model)
        for _ in range(3):
            assert torch.equal(greedy(model), expected)

    for span in telemetry.spans():
        written = attributes(span)
        assert written["corevital.capture.attention"] == REASON
        assert written["corevital.capture.prompt"] == REASON
        assert written["corevital.capture.logits"] == "captured"
        assert written["corevital.capture.hidden"] == "captured"
        assert written["corevital.capture.failures"] == 2
        assert "corevital.risk.score" in written
        assert "corevital.attention.entropy.mean" not in written
        assert step_indices(span) == list(range(STEPS))
    assert counted(telemetry, FAILURES) == 6
    assert counted(telemetry, FAILURES, signal="attention") == 3
    assert counted(telemetry, FAILURES, signal="prompt") == 3
    assert sorted(warnings_of_corevital(caplog)) == [
        "Observing attention failed; the generation goes on.",
        "Observing prompt failed; the generation goes on.",
    ]


def model_with_a_broken(method: str) -> GenerativeModel:
    """A model as they come with ``trust_remote_code``: parts of its interface do not work."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise NotImplementedError(method)

    model = tiny_model("llama")
    model.__class__ = type("OwnModel", (type(model),), {method: fail})
    return model


@pytest.mark.parametrize("method", ["get_decoder", "get_output_embeddings"])
def test_a_model_that_raises_when_it_is_looked_at_generates_all_the_same(
    method: str, telemetry: Telemetry, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    model = model_with_a_broken(method)
    expected = greedy(model)
    instrument()
    for _ in range(2):
        assert torch.equal(greedy(model), expected)

    assert counted(telemetry, FAILURES) == 2
    assert len(warnings_of_corevital(caplog)) == 1
    assert len(telemetry.spans()) == 2
    assert not is_observed(model)


class Broken:
    """What an application puts into the pipeline, and fails."""

    def fail(self) -> None:
        raise ValueError("broken part of the pipeline")


class BrokenSpanProcessor(SpanProcessor, Broken):
    def __init__(self, where: str) -> None:
        self._where = where

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if self._where == "on_start":
            self.fail()

    def on_end(self, span: ReadableSpan) -> None:
        if self._where == "on_end":
            self.fail()


class BrokenWriter(CoreVitalSpanProcessor, Broken):
    def write(self, span: Span, delivery: Delivery) -> Assessment | None:
        self.fail()
        return None


class BrokenLogProcessor(LogRecordProcessor, Broken):
    def on_emit(self, log_record: ReadWriteLogRecord) -> None:
        self.fail()

    def shutdown(self) -> None:
        """Nothing is held."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True


class BrokenSampler(Sampler, Broken):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        self.fail()
        raise AssertionError

    def get_description(self) -> str:
        return "broken"


def broken_pipeline(part: str, telemetry: Telemetry) -> dict[str, Any]:
    """Keywords of ``instrument`` under which a part of the application's own fails."""
    tracer_provider = telemetry.tracer_provider
    if part in ("on_start", "on_end"):
        tracer_provider.add_span_processor(BrokenSpanProcessor(part))
    elif part == "write":
        tracer_provider.add_span_processor(BrokenWriter())
    elif part == "on_emit":
        telemetry.logger_provider.add_log_record_processor(BrokenLogProcessor())
    elif part == "sampler":
        return {"tracer_provider": Sampled(BrokenSampler()).provider}
    else:
        return {"on_generation": lambda observed: Broken().fail()}
    return {}


@pytest.mark.parametrize("part", ["write", "on_start", "on_end", "on_emit", "sampler", "listener"])
def test_a_part_of_the_pipeline_that_raises_costs_no_token(
    part: str,
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
    caplog: pytest.LogCaptureFixture,
) -> None:
    expected = greedy(model)
    instrument(**broken_pipeline(part, telemetry))
    for _ in range(3):
        assert torch.equal(greedy(model), expected)

    assert counted(telemetry, FAILURES) == 3
    assert len(warnings_of_corevital(caplog)) == 1
    assert not is_observed(model)


@pytest.mark.parametrize("part", ["write", "on_start", "on_end", "on_emit", "sampler", "listener"])
def test_a_part_of_the_pipeline_that_raises_does_not_hide_the_exception_of_the_application(
    part: str, model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(**broken_pipeline(part, telemetry))
    error = Interrupted()
    with pytest.raises(Interrupted) as raised:
        greedy(model, **at_third_step("streamer", raising(error)))

    assert raised.value is error


def test_a_listener_that_raises_keeps_nothing_from_the_span(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(on_generation=lambda observed: Broken().fail())
    try:
        greedy(model)
    except ValueError:
        pytest.fail("the listener's exception reached the caller of generate")

    (span,) = telemetry.spans()
    assert "corevital.risk.score" in attributes(span)
    assert "gen_ai.server.request.duration" in telemetry.metrics()


def test_a_writer_that_fails_at_one_sequence_writes_the_others(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    class FailsOnce(CoreVitalSpanProcessor):
        done = False

        def write(self, span: Span, delivery: Delivery) -> Assessment | None:
            if not self.done:
                self.done = True
                raise ValueError("broken part of the pipeline")
            return super().write(span, delivery)

    telemetry.tracer_provider.add_span_processor(FailsOnce())
    instrument()
    greedy(model, tiny_prompt(batch=3))

    written = ["corevital.risk.score" in attributes(span) for span in telemetry.spans()]
    assert written == [False, True, True, False]
    assert counted(telemetry, FAILURES) == 1


def test_a_listener_sees_every_sequence_with_its_assessment(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    seen: list[Observed] = []
    instrument(on_generation=seen.append)
    greedy(model, tiny_prompt(batch=2))
    greedy(model, custom_generate=unchanged)

    spans = [span for span in telemetry.spans() if "corevital.batch.size" not in attributes(span)]
    assert [(each.trace_id, each.span_id) for each in seen] == [identity(span) for span in spans]
    assert [each.record.steps for each in seen] == [STEPS, STEPS, 0]
    assert [each.assessment is None for each in seen] == [False, False, True]


# Decodings that cannot be observed


def unsupported(decoding: str) -> tuple[GenerativeModel, dict[str, Any], str]:
    """A model, arguments of ``generate``, and the reason that spans must give."""
    reason = "the custom loop's tokens are not those of one forward pass each"
    model = tiny_model("llama" if decoding == "custom" else "bart")
    return model, {"custom_generate": contrastive}, reason


def unchanged(model: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
    """No decoding at all."""
    return input_ids


def contrastive(
    model: Any, input_ids: torch.Tensor, generation_config: Any, **options: Any
) -> torch.Tensor:
    """Against what the model makes of the text with its first tokens hidden."""
    for _ in range(generation_config.max_new_tokens):
        partly = torch.ones_like(input_ids)
        partly[:, :3] = 0
        with_all = model(input_ids).logits[:, -1].log_softmax(-1)
        with_some = model(input_ids, attention_mask=partly).logits[:, -1].log_softmax(-1)
        chosen = (with_all - 0.5 * with_some).argmax(-1, keepdim=True)
        input_ids = torch.cat((input_ids, chosen), dim=1)
    return input_ids


@pytest.mark.parametrize("decoding", ["custom", "custom, of an encoder-decoder"])
def test_a_decoding_that_cannot_be_observed_is_left_alone_and_says_so(
    decoding: str, telemetry: Telemetry, instrument: Instrument
) -> None:
    model, options, reason = unsupported(decoding)
    torch.manual_seed(5)
    expected = greedy(model, **options)
    instrument()
    torch.manual_seed(5)
    found = greedy(model, **options)

    assert torch.equal(found, expected)
    (span,) = telemetry.spans()
    written = attributes(span)
    signals = ["logits", "hidden", "attention", "prompt"]
    if model.config.is_encoder_decoder:
        signals += ["cross_attention", "encoder.hidden", "encoder.attention"]
    assert {name: value for name, value in written.items() if name.startswith("corevital.")} == {
        "corevital.capture.mode": "full",
        **{f"corevital.capture.{signal}": f"unavailable: {reason}" for signal in signals},
    }
    assert span.events == ()
    assert span.status.status_code is StatusCode.UNSET
    assert telemetry.logs() == []
    assert "corevital.risk.score" not in telemetry.metrics()
    assert counted(telemetry, "corevital.step.count") == 0
    assert counted(telemetry, "corevital.generation.count") == 1


def test_an_exception_in_a_beam_search_reaches_the_caller(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    error = Interrupted()
    processors = LogitsProcessorList([AtStep(2, raising(error))])
    with pytest.raises(Interrupted) as raised:
        greedy(model, num_beams=2, logits_processor=processors)

    assert raised.value is error
    assert telemetry.spans()[0].status.status_code is StatusCode.ERROR


def test_stopping_criteria_of_the_user_stay_as_they_are(
    model: GenerativeModel, instrument: Instrument
) -> None:
    criteria = StoppingCriteriaList([AfterStep(99, lambda: None)])
    instrument()
    greedy(model, stopping_criteria=criteria)

    assert len(criteria) == 1
