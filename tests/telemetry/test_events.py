"""Events carry the series that attributes have no room for: steps, layers, prompt."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from corevital import semconv
from corevital.record import GenerationRecord, PromptColumns
from corevital.telemetry.events import TimedEvent, layers_event, prompt_event, step_events
from corevital.telemetry.handover import Delivery
from tests.telemetry.records import HEADS, LAYERS, full_record, without


def steps_of(record: GenerationRecord, *, texts: tuple[str, ...] | None = None) -> list[TimedEvent]:
    return list(step_events(Delivery(record, texts), list(range(record.steps))))


def test_every_step_has_its_own_values_and_time() -> None:
    record = full_record()
    events = steps_of(record)
    assert record.logits is not None

    assert [event.name for event in events] == ["corevital.step"] * 8
    assert [event.attributes[semconv.STEP_INDEX] for event in events] == list(range(8))
    assert [event.attributes[semconv.STEP_TOKEN_ID] for event in events] == list(range(100, 108))
    assert [event.time_ns for event in events] == record.step_time_ns.tolist()
    assert [event.attributes[semconv.STEP_ENTROPY] for event in events] == [
        pytest.approx(value) for value in record.logits.entropy
    ]
    assert events[3].attributes[semconv.STEP_PERPLEXITY] == pytest.approx(
        2 ** float(record.logits.entropy[3])
    )


def test_values_over_layers_are_reduced() -> None:
    record = full_record()
    assert record.hidden is not None
    assert record.attention is not None
    attributes = steps_of(record)[5].attributes

    expected = {
        semconv.STEP_HIDDEN_L2_MEAN: record.hidden.l2_norm[5].mean(),
        semconv.STEP_HIDDEN_L2_LAST: record.hidden.l2_norm[5, -1],
        semconv.STEP_HIDDEN_MAX_ABS: record.hidden.max_abs[5].max(),
        semconv.STEP_ATTENTION_ENTROPY_MEAN: record.attention.entropy_mean[5].mean(),
        semconv.STEP_ATTENTION_ENTROPY_MIN: record.attention.entropy_min[5].min(),
        semconv.STEP_ATTENTION_CONCENTRATION_MAX: record.attention.concentration_max[5].max(),
        semconv.STEP_ATTENTION_COLLAPSED: LAYERS,
        semconv.STEP_ATTENTION_FOCUSED: 2 * LAYERS,
    }
    assert {name: attributes[name] for name in expected} == {
        name: pytest.approx(value) for name, value in expected.items()
    }


def test_only_the_chosen_steps_have_an_event() -> None:
    events = list(step_events(Delivery(full_record()), [0, 3, 7]))

    assert [event.attributes[semconv.STEP_INDEX] for event in events] == [0, 3, 7]
    assert [event.attributes[semconv.STEP_TOKEN_ID] for event in events] == [100, 103, 107]


def test_token_texts_are_there_only_when_they_were_handed_over() -> None:
    record = full_record(2)

    assert all(semconv.STEP_TOKEN_TEXT not in event.attributes for event in steps_of(record))
    texts = [
        event.attributes[semconv.STEP_TOKEN_TEXT] for event in steps_of(record, texts=("a", " b"))
    ]
    assert texts == ["a", " b"]


def test_a_value_that_was_not_observed_is_absent() -> None:
    record = full_record(3)
    assert record.logits is not None
    assert record.hidden is not None
    record.logits.entropy[1] = np.nan
    record.hidden.l2_norm[2] = np.nan
    first, second, third = (event.attributes for event in steps_of(record))

    assert semconv.STEP_ENTROPY in first
    assert semconv.STEP_ENTROPY not in second
    assert semconv.STEP_PERPLEXITY not in second
    assert semconv.STEP_HIDDEN_L2_MEAN not in third
    assert semconv.STEP_HIDDEN_L2_LAST not in third


@pytest.mark.parametrize("part", ["logits", "hidden", "attention"])
def test_a_part_that_was_not_observed_is_absent_from_every_event(part: str) -> None:
    record = without(full_record(2), part)
    area = {"logits": "corevital.step.entropy"}.get(part, f"corevital.step.{part}.")

    for event in steps_of(record):
        assert not any(name.startswith(area) for name in event.attributes)


def test_layers_with_nan_or_inf_are_named_at_their_steps() -> None:
    record = full_record(3)
    assert record.hidden is not None
    assert record.attention is not None
    record.hidden.non_finite[1, 2] = True
    record.attention.non_finite[1, 0] = True
    first, second, third = (event.attributes for event in steps_of(record))

    assert second[semconv.STEP_NON_FINITE_LAYERS] == [0, 2]
    assert semconv.STEP_NON_FINITE_LAYERS not in first
    assert semconv.STEP_NON_FINITE_LAYERS not in third


def test_every_value_is_one_that_opentelemetry_takes() -> None:
    record = full_record()
    events = [*steps_of(record), layers_event(record), prompt_event(record)]

    for event in events:
        assert event is not None
        for name, value in event.attributes.items():
            items = value if isinstance(value, list) else [value]
            assert {type(item) for item in items} <= {str, bool, int, float}, name
            assert all(math.isfinite(item) for item in items if isinstance(item, float)), name


def test_the_layers_event_has_statistics_over_all_steps() -> None:
    record = full_record()
    event = layers_event(record)
    assert event is not None
    assert record.hidden is not None
    norms = record.hidden.l2_norm.astype(np.float64)

    assert event.name == "corevital.layers"
    assert event.time_ns == record.end_time_ns
    assert event.attributes[semconv.LAYER_INDEX] == list(range(LAYERS))
    assert event.attributes[semconv.LAYER_L2_MEAN] == pytest.approx(norms.mean(axis=0))
    assert event.attributes[semconv.LAYER_L2_STD] == pytest.approx(norms.std(axis=0))
    assert event.attributes[semconv.LAYER_ATTENTION_INDEX] == list(range(LAYERS))
    assert event.attributes[semconv.LAYER_COLLAPSED_SHARE] == [1 / HEADS] * LAYERS


def test_a_layer_that_was_never_observed_is_left_out() -> None:
    record = full_record()
    assert record.hidden is not None
    assert record.attention is not None
    record.hidden.l2_norm[:, 0] = np.nan
    record.attention.entropy_mean[:, 2] = np.nan
    event = layers_event(record)
    assert event is not None

    assert event.attributes[semconv.LAYER_INDEX] == [1, 2]
    assert event.attributes[semconv.LAYER_ATTENTION_INDEX] == [0, 1]
    for name, value in event.attributes.items():
        assert isinstance(value, list)
        assert len(value) == 2, name


def test_without_layers_there_is_no_layers_event() -> None:
    assert layers_event(replace(full_record(), hidden=None, attention=None)) is None


def test_the_prompt_event_has_the_layers_of_the_prefill() -> None:
    record = full_record()
    event = prompt_event(record)
    assert event is not None
    assert record.prompt.basin is not None
    assert record.prompt.layer_transformation is not None

    assert event.name == "corevital.prompt"
    assert event.time_ns == record.step_time_ns[0]
    assert event.attributes[semconv.LAYER_INDEX] == list(range(LAYERS))
    assert event.attributes[semconv.PROMPT_BASIN] == pytest.approx(record.prompt.basin.mean(axis=1))
    assert event.attributes[semconv.PROMPT_TRANSFORMATION] == pytest.approx(
        record.prompt.layer_transformation
    )


def test_a_prompt_layer_without_a_value_is_left_out_of_all_lists() -> None:
    record = full_record()
    assert record.prompt.layer_transformation is not None
    record.prompt.layer_transformation[0] = np.nan
    event = prompt_event(record)
    assert event is not None

    assert event.attributes[semconv.LAYER_INDEX] == [1, 2]
    assert len(event.attributes[semconv.PROMPT_BASIN]) == 2  # type: ignore[arg-type]
    assert len(event.attributes[semconv.PROMPT_TRANSFORMATION]) == 2  # type: ignore[arg-type]


def test_without_prompt_telemetry_there_is_no_prompt_event() -> None:
    assert prompt_event(replace(full_record(), prompt=PromptColumns())) is None
    only_basin = PromptColumns(basin=full_record().prompt.basin)
    event = prompt_event(replace(full_record(), prompt=only_basin))
    assert event is not None
    assert semconv.PROMPT_TRANSFORMATION not in event.attributes
