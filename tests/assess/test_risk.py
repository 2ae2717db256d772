from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from corevital.assess import (
    HealthFlags,
    HeuristicRisk,
    Loop,
    Risk,
    RiskFactor,
    RiskLevel,
    RiskLevels,
    RiskSource,
)
from corevital.assess.risk import (
    NAN_EVIDENCE,
    REPETITION_EVIDENCE,
    USUAL_LEVELS,
    default_score,
    risk,
)
from corevital.record import GenerationRecord
from tests.assess.records import logit_columns, record

HEALTHY = HealthFlags()
HEURISTIC = HeuristicRisk(0.42, (RiskFactor("elevated_entropy", 0.42),))
LOOP = Loop(onset_step=3, period=2, length=120, end_step=None)


@dataclass
class Learned:
    """A calibration that always says the same."""

    says: float | None
    id: str = "model@0123"

    def probability(self, record: GenerationRecord) -> float | None:
        return self.says


def with_surprisal(*bits: float) -> GenerationRecord:
    ones = [1.0] * len(bits)
    return record(
        logits=logit_columns(entropy=ones, surprisal=list(bits), margin=ones, top_k_mass=ones)
    )


def judged(
    generation: GenerationRecord,
    flags: HealthFlags = HEALTHY,
    loops: tuple[Loop, ...] = (),
    model: Learned | None = None,
    levels: RiskLevels = USUAL_LEVELS,
) -> Risk:
    return risk(generation, flags, loops, HEURISTIC, model, levels)


@pytest.mark.parametrize(
    ("surprisal", "score"),
    [((0.0, 0.0), 0.0), ((2.0,), 0.5), ((1.0, 3.0), 0.5), ((4.0, 4.0, 4.0), 0.75)],
)
def test_the_default_score_halves_its_distance_to_one_every_two_bits_a_token(
    surprisal: tuple[float, ...], score: float
) -> None:
    assert default_score(with_surprisal(*surprisal)) == pytest.approx(score)


def test_the_default_score_does_not_grow_with_the_length() -> None:
    assert default_score(with_surprisal(*[0.5] * 1000)) == default_score(with_surprisal(0.5))


def test_a_generation_without_logits_has_no_default_risk() -> None:
    assert default_score(record()) == 0.0


def test_without_a_calibration_the_score_is_the_default_one() -> None:
    found = judged(with_surprisal(2.0))
    assert found == Risk(
        0.5, RiskLevel.MODERATE, RiskSource.UNCALIBRATED, HEURISTIC.score, HEURISTIC.factors
    )


def test_a_calibration_gives_the_score_and_its_name() -> None:
    found = judged(with_surprisal(2.0), model=Learned(0.07))
    assert found.score == pytest.approx(0.07)
    assert found.source is RiskSource.CALIBRATED
    assert (found.calibration, found.level) == ("model@0123", RiskLevel.LOW)


def test_the_heuristic_is_there_beside_any_score() -> None:
    for model in (None, Learned(0.9)):
        found = judged(with_surprisal(1.0), model=model)
        assert (found.heuristic, found.factors) == (0.42, HEURISTIC.factors)


def test_where_a_calibration_knows_too_little_the_default_score_takes_its_place() -> None:
    found = judged(with_surprisal(2.0), model=Learned(None))
    assert (found.score, found.source, found.calibration) == (0.5, RiskSource.UNCALIBRATED, None)


@pytest.mark.parametrize("model", [None, Learned(0.2)])
def test_a_loop_raises_any_score_and_keeps_the_order_of_scores(model: Learned | None) -> None:
    sure, unsure = with_surprisal(0.1), with_surprisal(6.0)
    for generation in (sure, unsure):
        plain = judged(generation, model=model).score
        for found in (
            judged(generation, loops=(LOOP,), model=model),
            judged(generation, HealthFlags(repetition_loop=True), model=model),
        ):
            assert found.score == pytest.approx(1.0 - (1.0 - plain) * (1.0 - REPETITION_EVIDENCE))
            assert found.level is RiskLevel.CRITICAL


def test_of_nan_a_calibration_knows_nothing() -> None:
    broken = with_surprisal(np.nan, 0.0)
    found = judged(broken, HealthFlags(nan_or_inf=True), model=Learned(0.01))
    assert (found.score, found.source) == (NAN_EVIDENCE, RiskSource.UNCALIBRATED)


@pytest.mark.parametrize(
    ("score", "level"),
    [
        (0.0, "low"),
        (0.29, "low"),
        (0.3, "moderate"),
        (0.59, "moderate"),
        (0.6, "high"),
        (0.84, "high"),
        (0.85, "critical"),
        (1.0, "critical"),
    ],
)
def test_each_threshold_belongs_to_the_level_above_it(score: float, level: str) -> None:
    assert USUAL_LEVELS.of(score) == level


def test_levels_can_be_set() -> None:
    strict = RiskLevels(moderate=0.01, high=0.02, critical=0.03)
    assert judged(with_surprisal(2.0), levels=strict).level is RiskLevel.CRITICAL
