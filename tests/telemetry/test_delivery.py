"""Every sequence of a call has its own record, and each record goes where it is asked for."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.trace import SpanKind, StatusCode
from transformers import LogitsProcessorList

from corevital import Observed
from tests.instrumentation import (
    Identity,
    attributes,
    counted,
    events,
    identity,
    parent_identity,
    step_indices,
)
from tests.models import GenerativeModel, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.comparison import differences
from tests.telemetry.conftest import Instrument
from tests.telemetry.generating import STEPS, AtStep, greedy


def padded(*lengths: int) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, padded on the left."""
    longest = max(lengths)
    rows, masks = [], []
    for seed, length in enumerate(lengths):
        padding = torch.zeros(1, longest - length, dtype=torch.long)
        prompt = tiny_prompt(tokens=length, seed=seed)
        rows.append(torch.cat((padding, prompt), dim=1))
        masks.append(torch.cat((padding, torch.ones_like(prompt)), dim=1))
    return {"inputs": torch.cat(rows), "attention_mask": torch.cat(masks)}


def generate_batch(model: GenerativeModel, *lengths: int, **options: Any) -> Any:
    settings = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False} | options
    return model.generate(**padded(*lengths), **settings)


# Batches


def test_a_batch_has_a_span_for_the_call_and_one_for_each_sequence(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    generate_batch(model, 12, 7, 9)

    *sequences, call = telemetry.spans()
    assert call.name == "text_completion LlamaForCausalLM"
    assert attributes(call)["corevital.batch.size"] == 3
    assert attributes(call)[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",) * 3
    assert call.events == ()
    assert not any(name.startswith("corevital.risk.") for name in attributes(call))
    assert [attributes(span)["corevital.sequence.index"] for span in sequences] == [0, 1, 2]
    for span in sequences:
        assert span.name == "sequence LlamaForCausalLM"
        assert span.kind is SpanKind.INTERNAL
        assert parent_identity(span) == identity(call)
        assert "corevital.risk.score" in attributes(span)
        assert step_indices(span) == list(range(STEPS))
    prompts = [attributes(span)[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] for span in sequences]
    assert prompts == [12, 7, 9]


def test_the_sequences_of_a_batch_lie_in_the_span_of_the_call(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    generate_batch(model, 12, 7)

    *sequences, call = telemetry.spans()
    assert call.start_time is not None
    assert call.end_time is not None
    for span in sequences:
        assert span.start_time is not None
        assert span.end_time is not None
        times = [event.timestamp for event in events(span, "corevital.step")]
        assert call.start_time <= span.start_time <= times[0]
        assert times[-1] <= span.end_time <= call.end_time
        assert all(before < after for before, after in itertools.pairwise(times))


def test_each_sequence_of_a_batch_has_the_record_that_it_has_alone(
    model: GenerativeModel, instrument: Instrument
) -> None:
    lengths = (12, 7, 9)
    alone: list[Observed] = []
    instrumentor = instrument(on_generation=alone.append)
    for seed, length in enumerate(lengths):
        greedy(model, tiny_prompt(tokens=length, seed=seed))
    instrumentor.uninstrument()
    together: list[Observed] = []
    instrument(on_generation=together.append)
    generate_batch(model, *lengths)

    for found, expected in zip(together, alone, strict=True):
        assert differences(found.record, expected.record) == []


def test_a_sequence_that_ends_early_has_only_its_own_steps(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    # The token that the first sequence chooses third; no other chooses it.
    tokens = generate_batch(model, 12, 7)[:, 12:]
    end = int(tokens[0, 2])
    assert end not in tokens[1]
    instrument()
    generate_batch(model, 12, 7, eos_token_id=end, min_new_tokens=None)

    first, second, call = telemetry.spans()
    assert step_indices(first) == [0, 1, 2]
    assert step_indices(second) == list(range(STEPS))
    assert attributes(call)[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("stop", "length")
    assert attributes(call)[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == 3 + STEPS
    assert counted(telemetry, "corevital.step.count") == 3 + STEPS


def test_several_answers_to_one_prompt_are_sequences_of_a_batch(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    torch.manual_seed(0)
    expected = greedy(model, do_sample=True, num_return_sequences=3)
    instrument()
    torch.manual_seed(0)
    tokens = greedy(model, do_sample=True, num_return_sequences=3)

    assert torch.equal(tokens, expected)
    *sequences, call = telemetry.spans()
    assert attributes(call)["corevital.batch.size"] == 3
    assert attributes(call)[gen_ai.GEN_AI_REQUEST_CHOICE_COUNT] == 3
    for row, span in enumerate(sequences):
        found = [
            attributes(event)["corevital.step.token.id"] for event in events(span, "corevital.step")
        ]
        assert found == tokens[row, -STEPS:].tolist()


def test_a_batch_that_fails_keeps_what_there_is_of_every_sequence(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()

    def fail() -> None:
        raise LookupError("no room")

    with pytest.raises(LookupError):
        generate_batch(model, 12, 7, logits_processor=LogitsProcessorList([AtStep(3, fail)]))

    *sequences, call = telemetry.spans()
    assert call.status.status_code is StatusCode.ERROR
    assert attributes(call)[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("error", "error")
    assert [step_indices(span) for span in sequences] == [[0, 1, 2], [0, 1, 2]]


def test_a_batch_counts_as_one_request_and_several_generations(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    generate_batch(model, 12, 7, 9)

    metrics = telemetry.metrics()
    assert counted(telemetry, "corevital.generation.count") == 3
    assert counted(telemetry, "corevital.step.count") == 3 * STEPS
    for name in ("gen_ai.server.request.duration", "gen_ai.client.operation.duration"):
        assert sum(getattr(point, "count", 0) for point in metrics[name].data.data_points) == 1
    entropy = metrics["corevital.generation.entropy"].data.data_points
    assert sum(getattr(point, "count", 0) for point in entropy) == 3


# Where step events go


def log_events(telemetry: Telemetry, name: str) -> list[Any]:
    records = [log.log_record for log in telemetry.logs()]
    return [record for record in records if record.event_name == name]


@pytest.mark.parametrize(
    ("where", "on_span", "in_log"),
    [("span", True, False), ("log", False, True), ("both", True, True), ("none", False, False)],
)
def test_step_events_go_where_they_are_asked_for(
    where: str,
    on_span: bool,
    in_log: bool,
    model: GenerativeModel,
    telemetry: Telemetry,
    instrument: Instrument,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COREVITAL_STEP_EVENTS", where)
    instrument()
    greedy(model)

    (span,) = telemetry.spans()
    names = {"corevital.step": STEPS, "corevital.layers": 1, "corevital.prompt": 1}
    for name, count in names.items():
        assert len(events(span, name)) == (count if on_span else 0), name
        assert len(log_events(telemetry, name)) == (count if in_log else 0), name
    omitted = 0 if on_span or in_log else STEPS
    assert attributes(span)["corevital.step.omitted"] == omitted
    assert len(log_events(telemetry, "gen_ai.evaluation.result")) == 1


def test_log_events_say_what_span_events_say(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(step_events="both")
    greedy(model)

    (span,) = telemetry.spans()
    for name in ("corevital.step", "corevital.layers", "corevital.prompt"):
        for log, event in zip(log_events(telemetry, name), events(span, name), strict=True):
            assert log.timestamp == event.timestamp
            assert log.body == name
            assert Identity(log.trace_id, log.span_id) == identity(span)
            assert {key: _list(value) for key, value in log.attributes.items()} == {
                key: _list(value) for key, value in attributes(event).items()
            }


def _list(value: Any) -> Any:
    return list(value) if isinstance(value, tuple | list) else value


@pytest.mark.parametrize("where", ["log", "both"])
def test_the_log_takes_every_step_of_a_long_generation(
    where: str, model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(step_events=where)
    greedy(model, max_new_tokens=140, min_new_tokens=140)

    indices = [
        log.attributes["corevital.step.index"] for log in log_events(telemetry, "corevital.step")
    ]
    assert indices == list(range(140))
    # Every step has an event in one place at least.
    assert attributes(telemetry.spans()[0])["corevital.step.omitted"] == 0


# The assessment


def test_the_assessment_is_sent_as_the_standard_event(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    greedy(model)

    (span,) = telemetry.spans()
    (log,) = log_events(telemetry, "gen_ai.evaluation.result")
    written = attributes(span)
    explanation = log.attributes[gen_ai.GEN_AI_EVALUATION_EXPLANATION]
    assert Identity(log.trace_id, log.span_id) == identity(span)
    assert log.attributes[gen_ai.GEN_AI_EVALUATION_NAME] == "corevital.risk"
    assert log.attributes[gen_ai.GEN_AI_EVALUATION_SCORE_VALUE] == written["corevital.risk.score"]
    assert log.attributes[gen_ai.GEN_AI_EVALUATION_SCORE_LABEL] == written["corevital.risk.level"]
    assert all(factor in explanation for factor in written["corevital.risk.factors"])
    assert span.start_time is not None
    assert span.end_time is not None
    assert span.start_time <= log.timestamp <= span.end_time


def test_every_sequence_of_a_batch_has_its_own_assessment(
    model: GenerativeModel, telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    generate_batch(model, 12, 7)

    *sequences, _ = telemetry.spans()
    logs = log_events(telemetry, "gen_ai.evaluation.result")
    assert [log.span_id for log in logs] == [identity(span).span_id for span in sequences]
