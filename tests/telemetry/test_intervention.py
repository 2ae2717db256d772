"""What is sent of a generation that was to be stopped early."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import StatusCode
from transformers import LogitsProcessor, LogitsProcessorList

import corevital
from tests.calibration.tiny import risk_file
from tests.forcing import forcing
from tests.instrumentation import attributes, counted, points
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument

LOOP = [40, 41, 42] * 70
COUNT = "corevital.intervention.count"


class Cycles(LogitsProcessor):
    """Makes a model say 40, 41, 42, 40 and so on, whatever it is asked about."""

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        newest = input_ids[:, -1]
        following = torch.where((newest >= 40) & (newest < 42), newest + 1, 40)
        return torch.full_like(scores, -torch.inf).scatter(1, following[:, None], 0.0)


def intervention(of: Any) -> dict[str, Any]:
    area = "corevital.intervention."
    return {
        name.removeprefix(area): value
        for name, value in attributes(of).items()
        if name.startswith(area)
    }


def say_loop(model: GenerativeModel, batch: int = 1, **options: Any) -> Any:
    given = {"inputs": tiny_prompt(batch), "do_sample": False, "max_new_tokens": len(LOOP)}
    return model.generate(**(given | {"logits_processor": forcing(LOOP)} | options))


def test_without_an_intervention_nothing_is_said_of_one(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    say_loop(model, max_new_tokens=5)

    assert intervention(telemetry.spans()[0]) == {}
    assert counted(telemetry, COUNT) == 0


@pytest.mark.parametrize("capture", ["full", "off"])
def test_the_span_says_that_and_why_it_was_stopped(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument, capture: str
) -> None:
    instrument(capture=capture)
    with corevital.intervene(["repetition", "non_finite"]):
        say_loop(model)

    (span,) = telemetry.spans()
    assert intervention(span) == {
        "conditions": ("repetition", "non_finite"),
        "reason": "repetition",
        "step": 191,
    }
    written = attributes(span)
    assert written[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("stop",)
    assert written[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == 192
    assert span.status.status_code is StatusCode.UNSET


def test_a_generation_that_was_not_stopped_says_what_it_would_have_been_for(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(intervene="non_finite")
    say_loop(model, max_new_tokens=5)

    assert intervention(telemetry.spans()[0]) == {"conditions": ("non_finite",)}
    assert counted(telemetry, COUNT) == 0


def test_each_sequence_of_a_batch_has_its_own_reason(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    breaking: Any = model

    def breaks(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        output[1, -1] = math.nan
        return output

    instrument(intervene="non_finite")
    with breaking.lm_head.register_forward_hook(breaks):
        say_loop(model, 2, max_new_tokens=4)

    first, second, call = telemetry.spans()
    assert intervention(first) == intervention(call) == {"conditions": ("non_finite",)}
    assert intervention(second)["reason"] == "non_finite"
    assert intervention(second)["step"] == 0
    assert counted(telemetry, COUNT) == 1


def test_the_counter_names_reason_and_model(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(intervene="repetition", capture="off")
    say_loop(model)

    (point,) = points(telemetry.metrics()[COUNT])
    assert dict(point.attributes or {}) == {
        "corevital.intervention.reason": "repetition",
        gen_ai.GEN_AI_OPERATION_NAME: "text_completion",
        gen_ai.GEN_AI_PROVIDER_NAME: "huggingface",
        gen_ai.GEN_AI_REQUEST_MODEL: "LlamaForCausalLM",
    }


def test_an_exception_is_an_error_of_the_span(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    with (
        corevital.intervene("repetition", raises=True),
        pytest.raises(corevital.GenerationStopped),
    ):
        say_loop(model)

    (span,) = telemetry.spans()
    assert span.status.status_code is StatusCode.ERROR
    assert attributes(span)["error.type"] == "corevital.intervention.GenerationStopped"
    assert intervention(span)["reason"] == "repetition"
    assert intervention(span)["step"] == 191
    assert counted(telemetry, COUNT) == 1


def test_a_trace_that_is_not_sampled_is_stopped_and_counted_too(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    with corevital.intervene("repetition"):
        result = say_loop(model)

    assert result.shape[1] < 12 + len(LOOP)
    assert counted(telemetry, COUNT) == 1


# Where not everything can be told


def test_beam_search_is_stopped_where_every_beam_is_broken(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    breaking: Any = model
    with torch.no_grad():
        breaking.model.layers[1].mlp.down_proj.weight.fill_(math.nan)
    options: dict[str, Any] = {"inputs": tiny_prompt(2), "num_beams": 3, "max_new_tokens": 9}
    instrument(intervene="non_finite")
    result = model.generate(**options)

    assert result.shape == (2, 12 + 1)
    assert [intervention(span).get("step") for span in telemetry.spans()] == [0, 0, None]
    assert counted(telemetry, COUNT) == 1


def test_beam_search_says_what_was_not_watched(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    plain = model.generate(tiny_prompt(), num_beams=2, max_new_tokens=5)
    instrument(intervene="repetition,risk")
    assert torch.equal(model.generate(tiny_prompt(), num_beams=2, max_new_tokens=5), plain)

    (span,) = telemetry.spans()
    reason = "the candidates of beam search change places"
    assert intervention(span)["unavailable"] == f"repetition: {reason}; risk: {reason}"


def test_criteria_that_are_not_a_list_say_so(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(intervene="repetition")
    say_loop(model, max_new_tokens=3, stopping_criteria={}.keys())

    assert (
        intervention(telemetry.spans()[0])["unavailable"] == "stopping criteria that are not a list"
    )


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_text_of_an_encoder_decoder_model_is_watched(
    family: str, telemetry: Telemetry, instrument: Instrument
) -> None:
    model = tiny_model(family)
    plain = say_loop(model)
    instrument(intervene="repetition")
    result = say_loop(model)

    assert 96 < result.shape[1] <= 193
    assert torch.equal(result, plain[:, : result.shape[1]])
    assert intervention(telemetry.spans()[0])["reason"] == "repetition"


def test_the_calibrated_risk_of_an_encoder_decoder_is_not_told_before_its_end(
    telemetry: Telemetry, instrument: Instrument, tmp_path: Path
) -> None:
    model = tiny_model("t5")
    instrument(intervene="risk", calibration=[risk_file(model, tmp_path)])
    say_loop(model, max_new_tokens=20)

    (span,) = telemetry.spans()
    assert "told at its end only" in intervention(span)["unavailable"]


def test_accepted_tokens_of_assisted_decoding_are_watched(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    def generate() -> Any:
        processors = LogitsProcessorList([Cycles()])
        return say_loop(model, logits_processor=processors, prompt_lookup_num_tokens=4)

    plain = generate()
    instrument(intervene="repetition")
    result = generate()

    assert 12 + 192 <= result.shape[1] < plain.shape[1]
    assert torch.equal(result, plain[:, : result.shape[1]])
    assert intervention(telemetry.spans()[0])["reason"] == "repetition"
