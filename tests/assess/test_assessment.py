from __future__ import annotations

from corevital.assess import Assessment, EarlyWarning, HealthFlags, Profile, Risk, RiskLevel, assess
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record


def test_nothing_captured_is_a_clean_assessment() -> None:
    assert assess(record(), Profile()) == Assessment(
        flags=HealthFlags(),
        signals=(),
        early_warning=EarlyWarning(0.0, ()),
        blame=(),
        risk=Risk(0.0, RiskLevel.LOW, ()),
    )


def test_flags_and_signals_reach_the_early_warning_and_the_risk() -> None:
    generation = record(
        logits=logit_columns(entropy=[5.0] * 5, margin=[0.5] * 5),
        hidden=hidden_columns([[1.0, 9.0, 1.0]] * 5, last_layer_cosine=[1.0] * 5),
        attention=attention_columns([[9, 9, 9]] * 5),
    )

    found = assess(generation, Profile())

    assert found.flags == HealthFlags(
        repetition_loop=True,
        mid_layer_anomaly=True,
        attention_collapse=True,
        attention_collapse_severity=0.8,
        high_entropy_steps=5,
    )
    assert found.early_warning.signals == (
        "entropy_margin_divergence",
        "repetition_loop",
        "mid_layer_anomaly",
        "attention_collapse",
    )
    assert [factor.name for factor in found.risk.factors] == [
        "repetition_loop",
        "mid_layer_anomaly",
        "attention_collapse",
        "elevated_entropy",
        "compound:confident_confusion",
        "compound:attention_bottleneck",
    ]
    assert [blame.layer for blame in found.blame] == [0, 1, 2]


def test_the_profile_sets_the_thresholds() -> None:
    generation = record(
        logits=logit_columns(entropy=[4.2]), hidden=hidden_columns([[1.0, 6.0, 1.0]])
    )

    strict = assess(generation, Profile(l2_multiplier=5.0, high_entropy_bits=4.0)).flags
    lenient = assess(generation, Profile(l2_multiplier=7.0, high_entropy_bits=4.5)).flags

    assert (strict.mid_layer_anomaly, strict.high_entropy_steps) == (True, 1)
    assert (lenient.mid_layer_anomaly, lenient.high_entropy_steps) == (False, 0)
