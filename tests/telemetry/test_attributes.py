"""Span attributes say what was observed, and leave out what was not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from corevital import semconv
from corevital.assess.assessment import assess
from corevital.assess.blame import LayerBlame
from corevital.assess.calibration import Calibration
from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.assess.profile import profile_for
from corevital.assess.rauq import rauq
from corevital.record import Captured, CaptureMode, GenerationRecord, PromptColumns
from corevital.telemetry.attributes import (
    assessment_attributes,
    capture_attributes,
    record_attributes,
)
from tests.telemetry.records import HEADS, attention, full_record, hidden, logits, without

ATTRIBUTE_LIMIT = 128


def written(record: GenerationRecord) -> dict[str, Any]:
    assessment = assess(record, profile_for(record.model.family))
    return {**record_attributes(record), **assessment_attributes(assessment)}


def numbers(attributes: Mapping[str, Any]) -> list[float]:
    values = [value if isinstance(value, list) else [value] for value in attributes.values()]
    return [number for value in values for number in value if isinstance(number, float)]


def test_a_full_record_leaves_room_for_the_standard_attributes() -> None:
    assert len(written(full_record())) < ATTRIBUTE_LIMIT - 30


def test_every_value_is_one_that_opentelemetry_takes() -> None:
    for name, value in written(full_record()).items():
        items = value if isinstance(value, list) else [value]
        # Of numpy's own types the SDK drops the attribute, with a warning.
        assert {type(item) for item in items} <= {str, bool, int, float}, name


def test_summaries_are_those_of_the_columns() -> None:
    record = full_record()
    attributes = written(record)
    assert record.logits is not None
    assert record.attention is not None
    assert record.prompt.surprisal is not None
    assert record.prompt.basin is not None
    expected = {
        semconv.CAPTURE_STEPS: 8,
        semconv.ENTROPY_MEAN: record.logits.entropy.mean(),
        semconv.ENTROPY_MAX: record.logits.entropy.max(),
        semconv.SURPRISAL_MEAN: record.logits.surprisal.mean(),
        semconv.SURPRISAL_MAX: record.logits.surprisal.max(),
        semconv.MARGIN_MEAN: record.logits.margin.mean(),
        semconv.MARGIN_MIN: record.logits.margin.min(),
        semconv.TOP_K_MASS_MEAN: record.logits.top_k_mass.mean(),
        semconv.UNCERTAINTY_NLL: record.logits.surprisal.sum(),
        semconv.UNCERTAINTY_NLL_PER_TOKEN: record.logits.surprisal.mean(),
        semconv.UNCERTAINTY_ENTROPY_MEAN: record.logits.entropy.mean(),
        semconv.UNCERTAINTY_ENTROPY_MAX: record.logits.entropy.max(),
        semconv.UNCERTAINTY_MARGIN_MEAN: record.logits.margin.mean(),
        semconv.UNCERTAINTY_RAUQ: rauq(record.logits, record.attention),
        semconv.ATTENTION_ENTROPY_MEAN: record.attention.entropy_mean.mean(),
        semconv.ATTENTION_COLLAPSED_SHARE: 1 / HEADS,
        semconv.PROMPT_SURPRISAL_MEAN: record.prompt.surprisal.mean(),
        semconv.PROMPT_SURPRISAL_MAX: record.prompt.surprisal.max(),
        semconv.PROMPT_BASIN_MEAN: record.prompt.basin.mean(),
        semconv.PROMPT_SPARSE_WEIGHTS: 77,
        semconv.TIME_TO_FIRST_TOKEN: 1.0,
        semconv.TIME_PER_OUTPUT_TOKEN: 0.25,
    }

    assert {name: attributes[name] for name in expected} == {
        name: pytest.approx(value) for name, value in expected.items()
    }


def test_lists_that_belong_together_are_equally_long() -> None:
    record = full_record()
    assert record.hidden is not None
    record.hidden.non_finite[:, 1] = True
    attributes = written(record)

    assert attributes[semconv.RISK_FACTORS] == ["nan_or_inf"]
    assert attributes[semconv.BLAME_LAYERS] != []
    for together in (
        (semconv.RISK_FACTORS, semconv.RISK_CONTRIBUTIONS),
        (semconv.SIGNAL_NAMES, semconv.SIGNAL_SEVERITIES, semconv.SIGNAL_EVIDENCE),
        (semconv.BLAME_SEVERITIES, semconv.BLAME_REASONS),
    ):
        assert len({len(attributes.get(name, [])) for name in together}) == 1

    assert semconv.BLAME_OMITTED not in attributes


def test_of_many_blamed_layers_the_worst_are_named() -> None:
    blame = tuple(
        LayerBlame(layer, 1.0 if layer > 91 else 0.3, (f"x{layer}",)) for layer in range(94)
    )
    found = replace(assess(full_record(), profile_for("llama")), blame=blame)
    attributes = assessment_attributes(found)

    assert attributes[semconv.BLAME_LAYERS] == [92, 93, *range(8)]
    assert attributes[semconv.BLAME_SEVERITIES] == [1.0, 1.0]
    assert attributes[semconv.BLAME_REASONS] == ["x92", "x93"]
    assert attributes[semconv.BLAME_OMITTED] == 84


def test_what_was_looked_for_and_not_found_is_an_empty_list_of_names() -> None:
    assessment = assess(full_record(), profile_for("llama"))
    attributes = assessment_attributes(replace(assessment, blame=(), signals=()))

    of_them = ("corevital.signal.", "corevital.blame.")
    found = {name: value for name, value in attributes.items() if name.startswith(of_them)}
    assert found == {semconv.SIGNAL_NAMES: [], semconv.BLAME_LAYERS: []}


@pytest.mark.parametrize(
    ("part", "areas"),
    [
        ("logits", ("entropy.", "surprisal.", "margin.", "top_k_mass.", "uncertainty.")),
        ("attention", ("attention.", "uncertainty.rauq")),
    ],
)
def test_a_part_that_was_not_observed_has_no_attribute(part: str, areas: tuple[str, ...]) -> None:
    record = full_record()
    prefixes = tuple(f"corevital.{area}" for area in areas)
    missing = written(record).keys() - written(without(record, part)).keys()
    # Of layers that are not blamed without the part there is nothing to tell.
    missing -= {semconv.BLAME_SEVERITIES, semconv.BLAME_REASONS}

    assert missing == {name for name in written(record) if name.startswith(prefixes)}


def test_without_prompt_telemetry_there_are_no_prompt_attributes() -> None:
    attributes = written(replace(full_record(), prompt=PromptColumns()))

    assert not any(name.startswith("corevital.prompt.") for name in attributes)


def test_nan_is_never_written() -> None:
    steps = 4
    nothing = np.full(steps, np.nan, dtype=np.float32)
    gone = np.full((steps, 3), np.nan, dtype=np.float32)
    record = replace(
        full_record(steps),
        logits=replace(logits(steps), entropy=nothing, margin=nothing, top_k_mass=nothing),
        hidden=replace(hidden(steps), l2_norm=gone, last_layer_cosine=nothing),
        attention=replace(attention(steps), entropy_mean=gone),
    )
    attributes = written(record)

    assert all(map(math.isfinite, numbers(attributes)))
    assert semconv.ENTROPY_MEAN not in attributes
    assert semconv.ATTENTION_COLLAPSED_SHARE not in attributes
    assert semconv.SURPRISAL_MEAN in attributes


def test_steps_without_a_value_do_not_count() -> None:
    record = full_record(4)
    assert record.logits is not None
    record.logits.entropy[:] = [np.nan, 1.0, np.inf, 2.0]
    record.logits.margin[:] = [np.nan, 0.25, 0.5, np.nan]
    attributes = written(record)

    assert attributes[semconv.ENTROPY_MEAN] == 1.5
    assert attributes[semconv.ENTROPY_MAX] == 2.0
    assert attributes[semconv.MARGIN_MIN] == 0.25


@pytest.mark.parametrize(
    ("steps", "names"),
    [
        (0, set()),
        (1, {semconv.TIME_TO_FIRST_TOKEN}),
        (2, {semconv.TIME_TO_FIRST_TOKEN, semconv.TIME_PER_OUTPUT_TOKEN}),
    ],
)
def test_times_need_tokens(steps: int, names: set[str]) -> None:
    timing = {semconv.TIME_TO_FIRST_TOKEN, semconv.TIME_PER_OUTPUT_TOKEN}

    assert record_attributes(full_record(steps)).keys() & timing == names


def test_says_what_was_captured_and_why_the_rest_was_not() -> None:
    report = replace(
        full_record().capture,
        mode=CaptureMode.ON_RISK,
        attention=Captured(False, "beam search"),
        failures=2,
        full_from_step=0,
    )

    assert capture_attributes(report) == {
        semconv.CAPTURE_MODE: "on_risk",
        semconv.CAPTURE_LOGITS: "captured",
        semconv.CAPTURE_HIDDEN: "captured",
        semconv.CAPTURE_ATTENTION: "unavailable: beam search",
        semconv.CAPTURE_PROMPT: "captured",
        semconv.CAPTURE_FULL_FROM: 0,
        semconv.CAPTURE_FAILURES: 2,
    }


def test_failures_and_escalation_are_absent_where_there_were_none() -> None:
    attributes = capture_attributes(full_record().capture)

    assert semconv.CAPTURE_FAILURES not in attributes
    assert semconv.CAPTURE_FULL_FROM not in attributes


def test_the_score_is_named_for_what_it_is() -> None:
    attributes = written(full_record())

    assert attributes[semconv.RISK_SOURCE] == "uncalibrated"
    assert semconv.CALIBRATION_RISK not in attributes
    assert 0.0 <= attributes[semconv.RISK_HEURISTIC] <= 1.0
    assert 0.0 <= attributes[semconv.RISK_SCORE] <= 1.0
    assert attributes[semconv.RISK_LEVEL] in ("low", "moderate", "high", "critical")


def calibrated(calibration: Calibration) -> dict[str, Any]:
    record = full_record()
    return assessment_attributes(assess(record, profile_for(record.model.family), calibration))


class Baseline:
    def __init__(self, divergence: Divergence) -> None:
        self._divergence = divergence

    def divergence(self, record: GenerationRecord) -> Divergence:
        return self._divergence


def test_a_baseline_adds_its_divergence_and_anomalies() -> None:
    anomaly = Anomaly("entropy", (), None, Direction.HIGHER, 3.0, "entropy higher")
    found = calibrated(Calibration(Baseline(Divergence("model@0", 0.9, (anomaly,)))))

    assert found[semconv.CALIBRATION_BASELINE] == "model@0"
    assert found[semconv.BASELINE_DIVERGENCE] == 0.9
    assert found[semconv.BASELINE_ANOMALIES] == ["entropy higher"]
    assert semconv.CALIBRATION_REFUSED not in found


def test_a_baseline_that_knows_nothing_of_what_was_observed_gives_no_score() -> None:
    found = calibrated(Calibration(Baseline(Divergence("model@0", None))))

    assert found[semconv.CALIBRATION_BASELINE] == "model@0"
    assert found[semconv.BASELINE_ANOMALIES] == []
    assert semconv.BASELINE_DIVERGENCE not in found


def test_a_calibration_that_was_refused_says_so() -> None:
    found = calibrated(Calibration(refused="made for another model"))

    assert found[semconv.CALIBRATION_REFUSED] == "made for another model"
    assert semconv.BASELINE_DIVERGENCE not in found


def test_without_calibration_nothing_is_said_of_it() -> None:
    names = written(full_record())

    assert not any("calibration" in name or "baseline" in name for name in names)
