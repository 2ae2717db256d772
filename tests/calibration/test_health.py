"""Runs that are broken in any model do not shape a baseline."""

from __future__ import annotations

from dataclasses import replace

import pytest

from corevital.assess.assessment import assess
from corevital.assess.flags import HealthFlags
from corevital.assess.profile import DEFAULT_PROFILE
from corevital.calibration.health import unhealthy
from corevital.record import GenerationRecord
from tests.assess.records import record
from tests.calibration.runs import healthy_record


def reason(made: GenerationRecord, **flags: bool) -> str | None:
    assessment = assess(made, DEFAULT_PROFILE)
    return unhealthy(made, replace(assessment, flags=HealthFlags(**flags)))


def test_a_run_without_flags_is_healthy() -> None:
    assert reason(healthy_record(0)) is None


def test_flags_that_hold_for_any_model_leave_a_run_out() -> None:
    assert reason(healthy_record(0), nan_or_inf=True) == "NaN or Inf"
    assert reason(healthy_record(0), repetition_loop=True) == "repetition"


def test_flags_that_depend_on_the_model_do_not() -> None:
    assert reason(healthy_record(0), mid_layer_anomaly=True, attention_collapse=True) is None


def test_what_was_not_seen_is_not_known_to_be_healthy() -> None:
    assert unhealthy(healthy_record(0), None) == "not observed"
    assert reason(replace(healthy_record(0), hidden=None)) == "not observed"
    assert reason(replace(healthy_record(0), logits=None)) == "not observed"


def test_a_run_without_tokens_says_nothing() -> None:
    assert reason(healthy_record(0, steps=0)) == "no token generated"


@pytest.mark.parametrize("made", [record()])
def test_nothing_at_all_is_not_healthy(made: GenerationRecord) -> None:
    assert reason(made) is not None
