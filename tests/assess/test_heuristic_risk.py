from __future__ import annotations

import math

import pytest

from corevital.assess import (
    CompoundSignal,
    HealthFlags,
    HeuristicRisk,
    RiskFactor,
    heuristic_risk,
)
from corevital.record import LogitColumns
from tests.assess.records import logit_columns, record

HEALTHY = HealthFlags()
NAN = math.nan


def factors(columns: LogitColumns) -> dict[str, float]:
    risk = heuristic_risk(record(logits=columns), HEALTHY, ())
    return {factor.name: factor.contribution for factor in risk.factors}


def test_nothing_captured_is_no_risk() -> None:
    assert heuristic_risk(record(), HEALTHY, ()) == HeuristicRisk(0.0, ())


def test_nan_or_inf_decides_alone() -> None:
    broken = HealthFlags(nan_or_inf=True, repetition_loop=True)
    uncertain = record(logits=logit_columns(entropy=[8.0]))

    assert heuristic_risk(uncertain, broken, ()) == HeuristicRisk(
        1.0, (RiskFactor("nan_or_inf", 1.0),)
    )


@pytest.mark.parametrize(
    ("flags", "score", "expected"),
    [
        (HealthFlags(repetition_loop=True), 0.9, {"repetition_loop": 0.9}),
        (HealthFlags(mid_layer_anomaly=True), 0.7, {"mid_layer_anomaly": 0.7}),
        (
            HealthFlags(attention_collapse=True, attention_collapse_severity=0.2),
            0.2,
            {"attention_collapse": 0.2},
        ),
        (
            HealthFlags(repetition_loop=True, mid_layer_anomaly=True),
            0.9,
            {"repetition_loop": 0.9, "mid_layer_anomaly": 0.0},
        ),
        (
            HealthFlags(
                mid_layer_anomaly=True, attention_collapse=True, attention_collapse_severity=0.8
            ),
            0.8,
            {"mid_layer_anomaly": 0.7, "attention_collapse": 0.1},
        ),
    ],
)
def test_the_worst_flag_is_the_base(
    flags: HealthFlags, score: float, expected: dict[str, float]
) -> None:
    risk = heuristic_risk(record(), flags, ())

    assert risk.score == pytest.approx(score)
    assert {f.name: f.contribution for f in risk.factors} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        pytest.param(logit_columns(entropy=[1.3]), {}, id="entropy below its floor"),
        pytest.param(
            logit_columns(entropy=[1.0, 3.0]), {"elevated_entropy": 0.075}, id="mean entropy"
        ),
        pytest.param(
            logit_columns(entropy=[9.0]), {"elevated_entropy": 0.3}, id="entropy is capped"
        ),
        pytest.param(logit_columns(margin=[0.16]), {}, id="margin above its ceiling"),
        pytest.param(logit_columns(margin=[0.1]), {"low_confidence_margin": 0.1}, id="low margin"),
        pytest.param(logit_columns(margin=[0.0]), {"low_confidence_margin": 0.2}, id="no margin"),
        pytest.param(logit_columns(top_k_mass=[0.81]), {}, id="mass above its ceiling"),
        pytest.param(logit_columns(top_k_mass=[0.5]), {"low_topk_mass": 0.075}, id="low mass"),
        pytest.param(logit_columns(surprisal=[0.19]), {}, id="surprisal below its floor"),
        pytest.param(logit_columns(surprisal=[0.5]), {"elevated_surprisal": 0.05}, id="surprisal"),
        pytest.param(
            logit_columns(surprisal=[7.0]), {"elevated_surprisal": 0.1}, id="surprisal is capped"
        ),
    ],
)
def test_distribution_statistics_add_to_the_risk(
    columns: LogitColumns, expected: dict[str, float]
) -> None:
    assert factors(columns) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("entropy", "contribution"),
    [
        pytest.param([0.4, 0.4, 0.4, 0.4, 0.5, 0.5], None, id="a quarter more is no rise"),
        pytest.param([0.4, 0.4, 0.0, 0.0, 0.6, 0.6], 0.05, id="half as much again"),
        pytest.param([0.05, 0.05, 0.0, 0.0, 0.9, 0.9], 0.2, id="capped"),
        pytest.param([0.1, 0.1, 0.0, 0.9, 0.9], None, id="five steps are too few"),
        pytest.param([0.0, 0.0, 0.0, 0.0, 0.9, 0.9], None, id="nothing to rise from"),
        pytest.param([0.4, 0.4, 0.0, NAN, 0.0, 0.6, 0.6], 0.05, id="unobserved steps"),
    ],
)
def test_rising_entropy_compares_the_last_third_to_the_first(
    entropy: list[float], contribution: float | None
) -> None:
    assert factors(logit_columns(entropy=entropy)).get("entropy_rising") == (
        None if contribution is None else pytest.approx(contribution)
    )


def test_compound_signals_add_their_severity_under_their_name() -> None:
    signals = (CompoundSignal("one", 0.25, ""), CompoundSignal("two", 0.5, ""))

    assert heuristic_risk(record(), HEALTHY, signals) == HeuristicRisk(
        0.75,
        (RiskFactor("compound:one", 0.25), RiskFactor("compound:two", 0.5)),
    )


def test_the_score_is_the_sum_up_to_one_and_the_order_is_fixed() -> None:
    uncertain = record(
        logits=logit_columns(
            entropy=[4, 4, 4, 4, 8, 8], margin=[0.0] * 6, top_k_mass=[0.0] * 6, surprisal=[9.0] * 6
        )
    )
    flags = HealthFlags(
        repetition_loop=True,
        mid_layer_anomaly=True,
        attention_collapse=True,
        attention_collapse_severity=0.4,
    )

    risk = heuristic_risk(uncertain, flags, (CompoundSignal("one", 0.5, ""),))

    assert risk.score == 1.0
    assert [factor.name for factor in risk.factors] == [
        "repetition_loop",
        "mid_layer_anomaly",
        "attention_collapse",
        "elevated_entropy",
        "entropy_rising",
        "low_confidence_margin",
        "low_topk_mass",
        "elevated_surprisal",
        "compound:one",
    ]
