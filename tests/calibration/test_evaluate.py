"""A calibrated risk is compared with other scores on runs that it was not fitted to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from corevital.calibration.estimators import ESTIMATORS, RAUQ
from corevital.calibration.evaluate import HEURISTIC, UNCALIBRATED, HeldOut, evaluation, held_out
from corevital.calibration.features import HIDDEN, LAST_LAYER, LOGITS
from corevital.calibration.fit_risk import FOLDS, LabelledRuns, TooFewLabels, fit_scorer, folds
from corevital.calibration.quality import auroc, brier, ece
from corevital.calibration.scoring import FittedScorer, Observation, probabilities
from tests.calibration.labelled import labelled, noise_runs, observations, planted_runs

WHOLE = (LOGITS, LAST_LAYER, HIDDEN)
SMALL = (LOGITS, HIDDEN)
FULLEST = "+".join(WHOLE)


def others_of(runs: LabelledRuns) -> dict[str, np.ndarray]:
    """Scores of no use, one for each run."""
    random = np.random.default_rng(5)
    return {HEURISTIC: random.random(len(runs)), UNCALIBRATED: random.random(len(runs))}


@pytest.fixture(scope="module")
def planted() -> LabelledRuns:
    return planted_runs(groups=WHOLE)[0]


@pytest.fixture(scope="module")
def scores(planted: LabelledRuns) -> HeldOut:
    return held_out(planted, others_of(planted))


def test_what_decides_is_told_for_runs_that_were_held_out(
    planted: LabelledRuns, scores: HeldOut
) -> None:
    assert auroc(scores.fullest, planted.failed) > 0.85
    best = scores.best_other(planted.failed)
    assert auroc(scores.fullest, planted.failed) > auroc(scores.others[best], planted.failed)


def test_every_amount_of_capture_has_its_scores(planted: LabelledRuns, scores: HeldOut) -> None:
    assert list(scores.calibrated) == [
        FULLEST,
        "logits+last_layer",
        "logits",
    ]
    assert scores.fullest is scores.calibrated[FULLEST]
    for values in scores.calibrated.values():
        assert values.shape == planted.failed.shape
        assert ((values > 0) & (values < 1)).all()
    # The feature that decides is in neither of these.
    assert auroc(scores.calibrated["logits"], planted.failed) < 0.6


def test_each_run_is_scored_by_what_was_fitted_without_it(
    planted: LabelledRuns, scores: HeldOut
) -> None:
    fitted, tested = next(iter(folds(planted)))
    known = planted[fitted]

    scorer = FittedScorer(fit_scorer(known, WHOLE))

    log_odds = scorer.log_odds([*planted[tested].observations])
    assert scores.fullest[tested].tolist() == probabilities(log_odds, len(known)).tolist()


def test_every_estimator_and_every_given_score_is_compared(
    planted: LabelledRuns, scores: HeldOut
) -> None:
    estimators = [name for name in ESTIMATORS if name != RAUQ]
    assert list(scores.others) == [HEURISTIC, UNCALIBRATED, *estimators]
    expected = [each.estimators["entropy.max"] for each in planted.observations]
    assert scores.others["entropy.max"].tolist() == expected


def test_noise_is_called_noise() -> None:
    """Nothing is learned, and the evaluation says so."""
    runs = noise_runs(groups=SMALL)

    said = evaluation(held_out(runs, others_of(runs)), runs.failed)

    for quality in said.calibrated.values():
        assert 0.4 < quality.auroc < 0.6
    assert said.calibrated["+".join(SMALL)].auroc < max(each.auroc for each in said.others.values())


def test_an_evaluation_has_the_quality_of_every_score(
    planted: LabelledRuns, scores: HeldOut
) -> None:
    said = evaluation(scores, planted.failed)

    assert said.folds == FOLDS
    assert list(said.calibrated) == list(scores.calibrated)
    assert list(said.others) == list(scores.others)
    full, heuristic = said.calibrated[FULLEST], said.others[HEURISTIC]
    assert full.auroc == auroc(scores.fullest, planted.failed)
    assert full.ece == ece(scores.fullest, planted.failed)
    assert full.brier == brier(scores.fullest, planted.failed)
    assert heuristic.brier == brier(scores.others[HEURISTIC], planted.failed)
    # An estimator is no probability.
    entropy = said.others["entropy.max"]
    assert entropy.auroc == auroc(scores.others["entropy.max"], planted.failed)
    assert (entropy.ece, entropy.brier) == (None, None)


def test_the_best_other_score_is_the_one_that_ranks_best() -> None:
    failed = np.array([True, True, False, False])
    others = {
        "none": np.zeros(4),
        "best": np.array([4.0, 3.0, 3.0, 1.0]),
        "reversed": np.arange(4.0),
    }

    assert HeldOut({}, others).best_other(failed) == "best"


def test_runs_of_one_prompt_are_held_out_together() -> None:
    """A prompt decides, and nothing that was observed: whoever knows it could tell."""
    random = np.random.default_rng(0)
    prompts = 60
    fails = random.random(prompts) < 0.5
    seen = observations(prompts, groups=SMALL)
    runs = labelled(seen * 3, np.tile(fails, 3), prompts=prompts)

    scores = held_out(runs, {})

    assert auroc(scores.fullest, runs.failed) < 0.65


def test_other_splits_can_be_given() -> None:
    runs, _ = planted_runs(groups=SMALL)
    kind = np.arange(len(runs)) % 3
    splits = [(np.flatnonzero(kind != each), np.flatnonzero(kind == each)) for each in range(3)]
    calls: list[None] = []

    scores = held_out(runs, {}, splits, lambda: calls.append(None))

    assert len(calls) == 3
    assert np.isfinite(scores.fullest).all()
    assert auroc(scores.fullest, runs.failed) > 0.85


def test_a_run_of_which_less_was_observed_is_scored_by_what_fits_it() -> None:
    runs, _ = planted_runs(groups=[LOGITS, LAST_LAYER], decisive=f"{LAST_LAYER}.0")
    first = runs.observations[0]
    logits = {name: value for name, value in first.features.items() if name.startswith(LOGITS)}
    mixed = replace(
        runs, observations=(Observation(logits, first.estimators), *runs.observations[1:])
    )

    scores = held_out(mixed, {})

    assert scores.fullest[0] == scores.calibrated["logits"][0]
    assert (scores.fullest[1:] != scores.calibrated["logits"][1:]).all()
    assert auroc(scores.fullest, runs.failed) > 0.85


def test_a_run_of_which_nothing_was_observed_cannot_be_compared() -> None:
    runs, _ = planted_runs(groups=SMALL)
    blind = replace(runs, observations=(Observation({}, {}), *runs.observations[1:]))

    with pytest.raises(ValueError, match="logits of every run"):
        held_out(blind, {})


def test_few_labels_are_refused() -> None:
    runs, _ = planted_runs(50)

    with pytest.raises(TooFewLabels):
        held_out(runs, {})
