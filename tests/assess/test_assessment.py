from __future__ import annotations

from corevital.assess import (
    Assessment,
    EarlyWarning,
    HealthFlags,
    Profile,
    Risk,
    RiskLevel,
    RiskSource,
    assess,
)
from corevital.assess.calibration import Calibration
from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.record import GenerationRecord
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record


def test_nothing_captured_is_a_clean_assessment() -> None:
    assert assess(record(), Profile()) == Assessment(
        flags=HealthFlags(),
        signals=(),
        early_warning=EarlyWarning(0.0, ()),
        blame=(),
        risk=Risk(0.0, RiskLevel.LOW, RiskSource.UNCALIBRATED, 0.0, ()),
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


class Elsewhere:
    """A baseline to which every run is as far."""

    def divergence(self, record: GenerationRecord) -> Divergence:
        anomaly = Anomaly("entropy", (), None, Direction.HIGHER, 3.0, "entropy higher")
        return Divergence("model@0", 0.9, (anomaly,), more_collapsed_heads=True)


def test_a_baseline_has_its_say() -> None:
    found = assess(record(), Profile(), Calibration(baseline=Elsewhere()))

    assert found.divergence == Elsewhere().divergence(record())
    assert found.flags.attention_collapse_severity == 0.3
    assert [factor.name for factor in found.risk.factors] == ["attention_collapse"]
    assert found.calibration_refused is None


def test_what_was_refused_is_passed_on() -> None:
    found = assess(record(), Profile(), Calibration(refused="made for another model"))

    assert found.calibration_refused == "made for another model"
    assert found.divergence is None
