"""Single numbers that rank runs by how likely they failed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from corevital.assess.rauq import rauq
from corevital.calibration.estimators import ESTIMATORS, RAUQ, estimators, logarithms
from corevital.record import GenerationRecord
from tests.assess.records import logit_columns, record
from tests.assess.test_properties import records

SURE = record(
    logits=logit_columns(
        entropy=[0.5, 1.5], surprisal=[0.25, 0.75], margin=[0.9, 0.5], top_k_mass=[1.0, 0.75]
    )
)


def test_they_are_what_they_are_called() -> None:
    assert estimators(SURE) == {
        "surprisal.sum": 1.0,
        "surprisal.mean": 0.5,
        "surprisal.max": 0.75,
        "entropy.mean": 1.0,
        "entropy.max": 1.5,
        "margin_deficit.mean": pytest.approx(0.3),
        "margin_deficit.max": 0.5,
        "top_k_mass_deficit.mean": 0.125,
        "top_k_mass_deficit.max": 0.25,
    }


def test_a_less_certain_run_has_larger_ones() -> None:
    doubtful = record(
        logits=logit_columns(
            entropy=[2.5, 3.5], surprisal=[2.0, 3.0], margin=[0.2, 0.1], top_k_mass=[0.7, 0.6]
        )
    )

    sure, unsure = estimators(SURE), estimators(doubtful)

    assert all(unsure[name] > value for name, value in sure.items())


def test_with_attention_there_is_rauq(tiny_runs: list[GenerationRecord]) -> None:
    found = estimators(tiny_runs[0])

    assert tuple(found) == ESTIMATORS
    assert found[RAUQ] == rauq(tiny_runs[0].logits, tiny_runs[0].attention)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_missing(value: float) -> None:
    assert SURE.logits is not None
    surprisal = np.array([0.25, value], dtype=np.float32)
    broken = replace(SURE, logits=replace(SURE.logits, surprisal=surprisal))

    found = estimators(broken)

    assert {"entropy.mean", "margin_deficit.max"} <= set(found)
    assert not {"surprisal.sum", "surprisal.mean"} & set(found)


def test_without_logits_or_steps_there_are_none() -> None:
    assert estimators(record()) == {}
    assert estimators(record(logits=logit_columns(entropy=[]))) == {}


@given(records())
def test_of_any_record_they_are_finite(generation: GenerationRecord) -> None:
    with np.errstate(all="raise"):
        found = estimators(generation)

    assert set(found) <= set(ESTIMATORS)
    assert all(type(value) is float and math.isfinite(value) for value in found.values())


def test_logarithms_spread_small_values_and_have_a_floor() -> None:
    assert logarithms({"a": 1.0, "b": math.e**-2}) == {"a": 0.0, "b": pytest.approx(-2.0)}
    # Below, a value says no more than that the run was certain; it may be zero or a rounding error.
    assert len(set(logarithms({"a": 1e-5, "b": 0.0, "c": -1e-9}).values())) == 1
