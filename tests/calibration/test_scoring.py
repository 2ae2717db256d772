"""A run is scored by what was observed of it, as far as it is like the labelled ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given

from corevital.calibration.estimators import ESTIMATORS
from corevital.calibration.features import GROUPS, HIDDEN, LOGITS
from corevital.calibration.risk import RiskCalibration, Scorer
from corevital.calibration.scoring import (
    MOST_DEVIATIONS,
    FittedScorer,
    Observation,
    RiskModel,
    mean_logarithm,
    probabilities,
)
from corevital.record import GenerationRecord
from tests.assess.records import record
from tests.assess.test_properties import records
from tests.calibration.labelled import (
    DECISIVE,
    SUMMARY,
    observations,
    planted_runs,
    risk_calibration,
    tiny_records,
    without,
)
from tests.models import GenerativeModel

UNSEEN = range(1000, 1004)
PLANTED = risk_calibration(planted_runs()[0])
FULL = PLANTED.scorers[0]


def ranks(values: np.ndarray) -> list[int]:
    order: list[int] = np.argsort(values).tolist()
    return order


def with_values(made: Observation, value: float, *names: str) -> Observation:
    return replace(made, features={**made.features, **dict.fromkeys(names, value)})


def score_of(scorer: Scorer, made: GenerationRecord, calibration: RiskCalibration) -> float:
    log_odds = FittedScorer(scorer).log_odds([Observation.of(made)])
    return float(probabilities(log_odds, calibration.runs)[0])


def test_a_full_record_is_scored_from_everything(
    tiny: GenerativeModel, tiny_risk: RiskCalibration
) -> None:
    model, scorer = RiskModel(tiny_risk, "id"), tiny_risk.scorers[0]
    assert scorer.groups == [*GROUPS]

    for made in tiny_records(tiny, UNSEEN, "full"):
        assert model.probability(made) == score_of(scorer, made, tiny_risk)


def test_a_summary_is_scored_by_what_was_learned_from_as_much(
    tiny: GenerativeModel, tiny_risk: RiskCalibration
) -> None:
    model = RiskModel(tiny_risk, "id")
    [scorer] = [each for each in tiny_risk.scorers if tuple(each.groups) == SUMMARY]

    for made in tiny_records(tiny, UNSEEN, "summary"):
        assert not FittedScorer(tiny_risk.scorers[0]).applies_to(Observation.of(made))
        assert model.probability(made) == score_of(scorer, made, tiny_risk)


def test_logits_alone_are_scored_too_but_not_less(
    tiny_runs: list[GenerationRecord], tiny_risk: RiskCalibration
) -> None:
    model, made = RiskModel(tiny_risk, "id"), tiny_runs[0]
    bare = without(made, "hidden", "attention")

    assert model.probability(bare) == score_of(tiny_risk.scorers[-1], bare, tiny_risk)
    assert tiny_risk.scorers[-1].groups == [LOGITS]
    assert model.probability(without(made, "logits")) is None
    assert model.probability(record()) is None


@given(records())
def test_of_any_record_there_is_a_probability_or_none(
    tiny_risk: RiskCalibration, generation: GenerationRecord
) -> None:
    with np.errstate(all="raise"):
        found = RiskModel(tiny_risk, "id").probability(generation)

    assert found is None or 0.0 < found < 1.0


def test_a_file_scores_as_what_it_was_written_from(tiny: GenerativeModel) -> None:
    restored = RiskCalibration.model_validate_json(PLANTED.model_dump_json())
    seen = observations(50, seed=1)

    for scorer, again in zip(PLANTED.scorers, restored.scorers, strict=True):
        ours, theirs = FittedScorer(scorer).log_odds(seen), FittedScorer(again).log_odds(seen)
        assert ours.tolist() == theirs.tolist()


def test_runs_are_scored_alone_as_together() -> None:
    seen, scorer = observations(20, seed=1), FittedScorer(FULL)

    alone = np.concatenate([scorer.log_odds([each]) for each in seen])

    assert scorer.log_odds(seen) == pytest.approx(alone)


def general(scorer: Scorer, seen: list[Observation]) -> np.ndarray:
    """The log-odds of the fallback."""
    fallback = scorer.fallback
    mean, scale = np.array(fallback.mean), np.array(fallback.scale)
    average = mean_logarithm(seen, fallback.estimators, mean, scale)
    return fallback.slope * average + fallback.intercept


def sloping(scorer: Scorer, slope: float = 1.5) -> Scorer:
    """The scorer with a fallback that tells runs apart."""
    return scorer.model_copy(
        update={"fallback": scorer.fallback.model_copy(update={"slope": slope})}
    )


def test_unfamiliar_runs_are_ranked_by_the_fallback_alone() -> None:
    scorer = sloping(FULL)
    far = observations(40, seed=2, far=3.5)
    # What decides among familiar runs says the opposite of the fallback.
    opposed = [
        with_values(each, -0.3 * place, DECISIVE)
        for place, each in zip(ranks(np.array(ranks(general(scorer, far)))), far, strict=True)
    ]

    assert FittedScorer(scorer).log_odds(opposed) == pytest.approx(general(scorer, opposed))


def test_familiar_runs_are_ranked_by_the_regression_alone() -> None:
    # A run amid the others: at the mean of each feature but the one that decides.
    middle = dict(zip(FULL.features, FULL.mean, strict=True))
    seen = [
        Observation({**middle, DECISIVE: value}, made.estimators)
        for value, made in zip(np.linspace(-1.5, 1.5, 9), observations(9, seed=3), strict=True)
    ]

    found = FittedScorer(sloping(FULL)).log_odds(seen)

    assert (np.diff(found) > 0).all()
    assert found.tolist() == FittedScorer(sloping(FULL, 0.0)).log_odds(seen).tolist()


def test_in_between_both_count() -> None:
    [made] = observations(1, seed=4)
    away = [
        replace(made, features={**dict.fromkeys(FULL.features, distance), DECISIVE: 1.5})
        for distance in np.linspace(0.0, 4.0, 81)
    ]

    gap = np.abs(FittedScorer(FULL).log_odds(away) - general(FULL, away))

    assert gap[0] > 1.0
    assert gap[-1] == pytest.approx(0.0)
    # No jump on the way.
    assert np.abs(np.diff(gap)).max() < gap.max() / 10


@pytest.mark.parametrize("value", [-1e30, -1e9, 1e9, 1e30])
def test_no_run_is_certain(value: float) -> None:
    least = 1.0 / (PLANTED.runs + 2)
    for made in observations(5, seed=5):
        everything = with_values(made, value, *made.features)
        for seen in (everything, with_values(made, value, DECISIVE)):
            [found] = probabilities(FittedScorer(FULL).log_odds([seen]), PLANTED.runs)
            assert least <= found <= 1.0 - least


def test_probabilities_are_those_of_the_log_odds_within_what_so_many_runs_can_show() -> None:
    log_odds = np.array([-1e300, -2.0, 0.0, 2.0, 1e300])

    found = probabilities(log_odds, 98)

    assert found == pytest.approx([0.01, 1 / (1 + np.e**2), 0.5, 1 / (1 + np.e**-2), 0.99])


def test_a_single_feature_counts_no_more_than_its_limit() -> None:
    [made] = observations(1, seed=6)
    place = FULL.features.index(DECISIVE)
    limit = FULL.mean[place] + MOST_DEVIATIONS * FULL.scale[place]

    at_limit, beyond = with_values(made, limit, DECISIVE), with_values(made, 1e6, DECISIVE)

    scorer = FittedScorer(FULL)
    assert scorer.log_odds([beyond]) == pytest.approx(scorer.log_odds([at_limit]))


def test_a_scorer_needs_all_that_it_was_fitted_to() -> None:
    [made] = observations(1)
    scorer = FittedScorer(FULL)
    fewer = {name: value for name, value in made.features.items() if name != f"{HIDDEN}.3"}

    assert scorer.applies_to(made)
    assert not scorer.applies_to(replace(made, features=fewer))
    assert not scorer.applies_to(replace(made, estimators={}))


def test_an_observation_knows_its_groups(tiny_runs: list[GenerationRecord]) -> None:
    assert Observation.of(tiny_runs[0]).groups == {*GROUPS}
    assert Observation.of(record()).groups == set()
    assert set(Observation.of(tiny_runs[0]).estimators) == {*ESTIMATORS}
