from __future__ import annotations

import math

import pytest

from corevital.assess import HealthFlags, Profile
from corevital.assess.divergence import Divergence
from corevital.assess.flags import health_flags
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record

DEFAULT = Profile()
NAN = math.nan


def test_nothing_captured_raises_no_flag() -> None:
    assert health_flags(record(), DEFAULT) == HealthFlags()


def test_no_steps_raise_no_flag() -> None:
    empty = record(logits=logit_columns(), hidden=hidden_columns([[]]))

    assert health_flags(empty, DEFAULT) == HealthFlags()


def test_nan_or_inf_in_a_hidden_state() -> None:
    hidden = hidden_columns([[1.0, 1.0]], non_finite=[[False, True]])

    assert health_flags(record(hidden=hidden), DEFAULT).nan_or_inf


def test_nan_in_the_logits() -> None:
    logits = logit_columns(entropy=[1.0, NAN, 1.0])
    assert health_flags(record(logits=logits), DEFAULT).nan_or_inf


def test_nan_or_inf_in_attention() -> None:
    attention = attention_columns([[0, 0]], non_finite=[[True, False]])

    assert health_flags(record(attention=attention), DEFAULT).nan_or_inf


def test_values_that_were_not_observed_are_not_nan_values() -> None:
    hidden = hidden_columns([[NAN, NAN, 1.0]])

    assert not health_flags(record(hidden=hidden), DEFAULT).nan_or_inf


def test_repetition_loop_by_the_profiles_cosine() -> None:
    looping = record(
        hidden=hidden_columns([[1.0]] * 5, last_layer_cosine=[NAN] + [0.9996] * 4),
    )

    assert health_flags(looping, Profile(repetition_cosine=0.9995)).repetition_loop
    assert not health_flags(looping, Profile(repetition_cosine=0.9997)).repetition_loop


def test_mid_layer_anomaly_by_the_profiles_multiplier() -> None:
    bulging = record(hidden=hidden_columns([[1.0, 9.0, 1.0]]))

    assert health_flags(bulging, Profile(l2_multiplier=8.0)).mid_layer_anomaly
    assert not health_flags(bulging, Profile(l2_multiplier=10.0)).mid_layer_anomaly


def test_attention_collapse_with_its_severity() -> None:
    collapsing = record(attention=attention_columns([[0], [0], [0], [2]], heads=10))

    flags = health_flags(collapsing, DEFAULT)

    assert flags.attention_collapse
    assert flags.attention_collapse_severity == 0.2


@pytest.mark.parametrize(("bits", "steps"), [(3.5, 3), (4.0, 2), (4.5, 1), (5.0, 0)])
def test_high_entropy_steps_are_counted_above_the_profiles_bits(bits: float, steps: int) -> None:
    uncertain = record(logits=logit_columns(entropy=[1.0, 4.0, NAN, 4.25, 5.0]))

    assert health_flags(uncertain, Profile(high_entropy_bits=bits)).high_entropy_steps == steps


def test_more_collapsed_heads_than_in_a_baseline_are_a_collapse() -> None:
    calm = record(attention=attention_columns([[1, 1]] * 6))
    more = Divergence("model@0", 0.9, (), more_collapsed_heads=True)

    assert not health_flags(calm, DEFAULT, Divergence("model@0", 0.9)).attention_collapse
    found = health_flags(calm, DEFAULT, more)
    assert found.attention_collapse
    assert found.attention_collapse_severity == 0.3
