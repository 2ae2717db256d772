from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess.fingerprint import LIMIT, NAMES, NOTHING_OBSERVED, fingerprint
from corevital.assess.flags import HealthFlags
from corevital.record import GenerationRecord
from tests.assess.records import logit_columns, record

NAN = math.nan


def named(
    generation: GenerationRecord, flags: HealthFlags | None = None, risk: float = 0.0
) -> dict[str, float]:
    found = fingerprint(generation, flags or HealthFlags(), risk)
    return dict(zip(NAMES, found, strict=True))


def test_there_are_25_elements_each_with_a_name_of_its_own() -> None:
    assert len(NAMES) == len(set(NAMES)) == 25


def test_of_nothing_observed_every_element_is_zero() -> None:
    assert fingerprint(record(), HealthFlags(), 0.0) == NOTHING_OBSERVED


def test_each_statistic_is_in_its_own_place() -> None:
    generation = record(
        logits=logit_columns(
            entropy=[1.0, 2.0, 4.0, 5.0],
            surprisal=[8.0, 6.0, 4.0, 2.0],
            margin=[0.5, 0.25, 0.25, 0.0],
            top_k_mass=[1.0, 0.5, 1.0, 0.5],
        )
    )

    found = named(generation, HealthFlags(repetition_loop=True, high_entropy_steps=1), risk=0.9)

    assert found == pytest.approx(
        dict.fromkeys(NAMES, 0.0)
        | {
            "entropy_mean": 3.0,
            "entropy_std": math.sqrt(10 / 3),
            "entropy_min": 1.0,
            "entropy_max": 5.0,
            "entropy_slope": 1.4,
            "margin_mean": 0.25,
            "margin_std": math.sqrt(0.125 / 3),
            "margin_slope": -0.15,
            "surprisal_mean": 5.0,
            "surprisal_std": math.sqrt(20 / 3),
            "surprisal_slope": -2.0,
            "top_k_mass_mean": 0.75,
            "top_k_mass_std": math.sqrt(0.25 / 3),
            "risk": 0.9,
            "high_entropy_share": 0.25,
            "repetition_loop": 1.0,
            "entropy_margin_correlation": -1.0 / math.sqrt(10 * 0.125),
            "entropy_variation": math.sqrt(10 / 3) / 3,
            "entropy_first_quarter_mean": 1.0,
            "entropy_last_quarter_mean": 5.0,
        },
        abs=1e-6,
    )


@pytest.mark.parametrize(
    "flag", ["nan_or_inf", "attention_collapse", "repetition_loop", "mid_layer_anomaly"]
)
def test_a_flag_is_one_where_it_is_raised(flag: str) -> None:
    found = named(record(), HealthFlags(**{flag: True}))

    assert [name for name, value in found.items() if value] == [flag]


def test_quarters_round_down_and_need_four_steps() -> None:
    three = named(record(logits=logit_columns(entropy=[1.0, 2.0, 3.0])))
    seven = named(record(logits=logit_columns(entropy=[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])))
    eight = named(record(logits=logit_columns(entropy=[1.0, 3.0, 0, 0, 0, 0, 6.0, 8.0])))

    assert (three["entropy_first_quarter_mean"], three["entropy_last_quarter_mean"]) == (0, 0)
    assert (seven["entropy_first_quarter_mean"], seven["entropy_last_quarter_mean"]) == (1, 7)
    assert (eight["entropy_first_quarter_mean"], eight["entropy_last_quarter_mean"]) == (2, 7)


def test_correlation_counts_the_steps_that_have_both() -> None:
    generation = record(
        logits=logit_columns(entropy=[1.0, NAN, 2.0, 9.0, 3.0], margin=[0.1, 0.9, 0.2, NAN, 0.3])
    )

    assert named(generation)["entropy_margin_correlation"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("entropy", "margin"),
    [([1.0], [0.5]), ([0.1, 0.1, 0.1], [0.1, 0.2, 0.3]), ([1.0, 2.0], [0.5, 0.5])],
)
def test_without_variation_there_is_no_correlation(
    entropy: list[float], margin: list[float]
) -> None:
    generation = record(logits=logit_columns(entropy=entropy, margin=margin))

    assert named(generation)["entropy_margin_correlation"] == 0.0


def test_variation_of_nothing_but_zeros_is_zero() -> None:
    assert named(record(logits=logit_columns(entropy=[0.0, 0.0])))["entropy_variation"] == 0.0


def test_steps_that_were_not_observed_count_for_nothing() -> None:
    seen = logit_columns(entropy=[1.0, 2.0, 5.0, 3.0], margin=[0.1, 0.3, 0.2, 0.1])
    gappy = logit_columns(
        entropy=[1.0, NAN, 2.0, math.inf, 5.0, 3.0], margin=[0.1, NAN, 0.3, -math.inf, 0.2, 0.1]
    )

    assert named(record(logits=gappy)) == pytest.approx(named(record(logits=seen)))


def test_no_element_is_beyond_the_limit() -> None:
    huge = float(np.finfo(np.float32).max)
    found = named(record(logits=logit_columns(entropy=[-huge, -huge, huge, huge])))

    assert (found["entropy_min"], found["entropy_max"]) == (-LIMIT, LIMIT)
    assert found["entropy_slope"] == LIMIT
