"""What is learned from labelled runs holds for runs that were never seen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from corevital.calibration.estimators import RAUQ
from corevital.calibration.features import ATTENTION, GROUPS, HIDDEN, LAST_LAYER, LOGITS, PROMPT
from corevital.calibration.fit_risk import (
    FOLDS,
    LEAST_OF_A_KIND,
    LEAST_RUNS,
    LabelledRuns,
    TooFewLabels,
    captures,
    check_labels,
    fit_scorer,
    fit_scorers,
    folds,
)
from corevital.calibration.quality import auroc, ece
from corevital.calibration.risk import Scorer
from corevital.calibration.scoring import FittedScorer, Observation, Values, probabilities
from tests.calibration.labelled import (
    DECISIVE,
    RUNS,
    SUMMARY,
    labelled,
    noise_runs,
    observations,
    planted_runs,
)

UNSEEN_SEED = 100


def said(scorer: Scorer, runs: LabelledRuns) -> Values:
    return probabilities(FittedScorer(scorer).log_odds([*runs.observations]), RUNS)


def reduced(seen: Observation, *groups: str) -> Observation:
    """As if only ``groups`` had been observed."""
    kept = {
        name: value for name, value in seen.features.items() if name.partition(".")[0] in groups
    }
    estimators = {
        name: value
        for name, value in seen.estimators.items()
        if LOGITS in groups and (name != RAUQ or ATTENTION in groups)
    }
    return Observation(kept, estimators)


def test_what_decides_is_found() -> None:
    runs, _ = planted_runs()
    unseen, log_odds = planted_runs(1000, UNSEEN_SEED)

    scorer = fit_scorer(runs, GROUPS)

    best = auroc(log_odds, unseen.failed)
    assert auroc(said(scorer, unseen), unseen.failed) > best - 0.06
    strongest = scorer.features[int(np.argmax(np.abs(scorer.weights)))]
    assert strongest == DECISIVE


def test_it_is_not_found_where_it_is_not_observed() -> None:
    runs, _ = planted_runs()
    unseen, _ = planted_runs(1000, UNSEEN_SEED)

    scorer = fit_scorer(runs, SUMMARY)

    assert 0.4 < auroc(said(scorer, unseen), unseen.failed) < 0.6


def test_what_no_straight_line_tells_is_found_near_the_labelled_runs() -> None:
    """Failures lie in the middle of one feature, where a regression on it alone is blind."""
    runs, unseen = (
        labelled(seen, [abs(each.features[DECISIVE]) < 0.67 for each in seen])
        for seen in (observations(600, 1, [LOGITS, HIDDEN]), observations(600, 2, [LOGITS, HIDDEN]))
    )

    scorer = fit_scorer(runs, (LOGITS, HIDDEN))

    linear = np.array([each.features[DECISIVE] for each in unseen.observations])
    assert 0.4 < auroc(linear, unseen.failed) < 0.6
    assert auroc(said(scorer, unseen), unseen.failed) > 0.7


@pytest.mark.parametrize("strength", [0.5, 1.5, 4.0])
def test_probabilities_hold_for_unseen_runs(strength: float) -> None:
    runs, _ = planted_runs(strength=strength)
    unseen, log_odds = planted_runs(4000, UNSEEN_SEED, strength=strength)

    found = said(fit_scorer(runs, GROUPS), unseen)

    assert ece(found, unseen.failed) < 0.06
    true = probabilities(log_odds, 10**9)
    assert np.abs(found.mean() - true.mean()) < 0.05


@pytest.mark.parametrize("seed", range(3))
def test_noise_gives_the_share_of_failures_and_no_more(seed: int) -> None:
    unseen = noise_runs(1000, UNSEEN_SEED)

    found = said(fit_scorer(noise_runs(RUNS, seed), GROUPS), unseen)

    assert 0.42 < auroc(found, unseen.failed) < 0.58
    assert ece(found, unseen.failed) < 0.1


def test_failures_that_can_be_told_for_certain_do_not_make_it_certain() -> None:
    seen = observations(RUNS)
    runs = labelled(seen, [each.features[DECISIVE] > 0.0 for each in seen])

    scorer = fit_scorer(runs, GROUPS)

    assert max(map(abs, scorer.weights)) < 50
    assert auroc(said(scorer, runs), runs.failed) > 0.95
    assert 0.0 < said(scorer, runs).min() < said(scorer, runs).max() < 1.0


def test_the_fallback_ranks_by_its_estimators_where_these_rank_failures() -> None:
    seen = observations(RUNS)
    nlls = np.array([each.estimators["surprisal.sum"] for each in seen])

    right = fit_scorer(labelled(seen, nlls > np.median(nlls)), GROUPS).fallback
    wrong = fit_scorer(labelled(seen, nlls < np.median(nlls)), GROUPS).fallback

    assert right.slope > 1.0
    # More of an estimator never means less risk; then only the share of failures is left.
    assert (wrong.slope, wrong.intercept) == (0.0, 0.0)


def test_there_is_a_scorer_for_each_amount_of_capture() -> None:
    scorers = fit_scorers(planted_runs()[0])

    assert [tuple(each.groups) for each in scorers] == [
        GROUPS,
        (LOGITS, LAST_LAYER, HIDDEN, ATTENTION),
        SUMMARY,
        (LOGITS,),
    ]
    for scorer in scorers:
        assert {name.partition(".")[0] for name in scorer.features} == {*scorer.groups}


def test_each_scorer_needs_nothing_but_its_capture() -> None:
    [seen] = observations(1)

    for scorer in fit_scorers(planted_runs()[0]):
        assert FittedScorer(scorer).applies_to(reduced(seen, *scorer.groups))
        assert (RAUQ in scorer.fallback.estimators) == (ATTENTION in scorer.groups)


def test_what_the_model_does_not_have_is_no_part_of_any_capture() -> None:
    runs, _ = planted_runs(groups=[LOGITS, LAST_LAYER, HIDDEN, PROMPT])

    assert captures(runs) == [
        (LOGITS, LAST_LAYER, HIDDEN, PROMPT),
        (LOGITS, LAST_LAYER, HIDDEN),
        SUMMARY,
        (LOGITS,),
    ]


def test_a_run_of_which_less_was_observed_does_not_spoil_the_others() -> None:
    runs, _ = planted_runs()
    broken = [reduced(runs.observations[0]), reduced(runs.observations[1], *SUMMARY)]
    mixed = replace(runs, observations=(*broken, *runs.observations[2:]))

    scorers = fit_scorers(mixed)

    assert [each.groups for each in scorers] == [list(groups) for groups in captures(runs)]
    fewer = runs[np.arange(2, len(runs))]
    assert scorers[0] == fit_scorer(fewer, GROUPS)


def test_runs_of_which_little_was_observed_learn_from_that() -> None:
    runs, _ = planted_runs(decisive=f"{LOGITS}.0")
    full = LEAST_RUNS - 1
    mixed = replace(
        runs,
        observations=(
            *runs.observations[:full],
            *(reduced(each, *SUMMARY) for each in runs.observations[full:]),
        ),
    )

    assert captures(mixed) == [SUMMARY, (LOGITS,)]


def test_without_logits_nothing_can_be_learned() -> None:
    runs, _ = planted_runs(groups=[LAST_LAYER, HIDDEN])

    with pytest.raises(TooFewLabels, match="the logits were observed in too few"):
        fit_scorers(runs)


def test_a_feature_that_never_varied_says_nothing() -> None:
    runs, _ = planted_runs()
    constant = f"{LOGITS}.0"
    same = replace(
        runs,
        observations=tuple(
            replace(each, features={**each.features, constant: 3.0}) for each in runs.observations
        ),
    )
    [seen] = observations(1, UNSEEN_SEED)

    scorer = FittedScorer(fit_scorer(same, GROUPS))

    usual = replace(seen, features={**seen.features, constant: 3.0})
    other = replace(seen, features={**seen.features, constant: 3.5})
    assert scorer.log_odds([other]) == pytest.approx(scorer.log_odds([usual]), abs=0.05)


def test_a_feature_that_hardly_varies_is_told_as_exactly_from_the_file() -> None:
    """Its values differ only in their eighth digit."""
    runs, _ = planted_runs()
    shifted = replace(
        runs,
        observations=tuple(
            replace(each, features={**each.features, DECISIVE: 7.0 + 1e-5 * value})
            for each in runs.observations
            for value in [each.features[DECISIVE]]
        ),
    )

    found = said(fit_scorer(shifted, GROUPS), shifted)

    assert found == pytest.approx(said(fit_scorer(runs, GROUPS), runs), abs=0.01)


def test_equal_runs_of_one_prompt_can_be_learned_from() -> None:
    runs, _ = planted_runs(30)
    several = LabelledRuns(
        runs.observations * 10, np.tile(runs.failed, 10), np.tile(runs.prompts, 10)
    )

    assert auroc(said(fit_scorer(several, GROUPS), several), several.failed) > 0.9


@pytest.mark.parametrize("count", [FOLDS, 5])
def test_no_prompt_is_on_both_sides_of_a_fold(count: int) -> None:
    runs, _ = planted_runs(200)
    grouped = labelled(runs.observations, runs.failed, prompts=37)

    splits = list(folds(grouped, count))

    assert len(splits) == count
    assert sorted(np.concatenate([tested for _, tested in splits]).tolist()) == [*range(200)]
    for fitted, tested in splits:
        assert not {*grouped.prompts[fitted]} & {*grouped.prompts[tested]}
        assert {*fitted.tolist(), *tested.tolist()} == {*range(200)}


@pytest.mark.parametrize(
    ("failures", "others"),
    [(0, LEAST_RUNS), (LEAST_OF_A_KIND - 1, LEAST_RUNS), (LEAST_RUNS, 3), (49, 50), (0, 0)],
)
def test_few_labels_are_refused(failures: int, others: int) -> None:
    failed = np.repeat([True, False], [failures, others])

    with pytest.raises(TooFewLabels, match=f"^{failures} runs failed and {others} did not; needed"):
        check_labels(failed)


def test_enough_labels_are_accepted() -> None:
    check_labels(np.repeat([True, False], [LEAST_OF_A_KIND, LEAST_RUNS - LEAST_OF_A_KIND]))


def test_few_prompts_are_refused() -> None:
    runs, _ = planted_runs()
    # Runs of one prompt alone failed.
    failed = np.arange(RUNS) % 12 == 0

    with pytest.raises(TooFewLabels, match=r"^runs of 1 prompts failed and runs of 11 prompts"):
        fit_scorers(labelled(runs.observations, failed, prompts=12))


def test_the_same_runs_give_the_same_scorers() -> None:
    first = fit_scorers(planted_runs()[0])

    assert fit_scorers(planted_runs()[0]) == first
    assert fit_scorers(planted_runs(seed=1)[0]) != first


def test_the_number_of_threads_makes_no_difference() -> None:
    runs, _ = planted_runs()
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(fit_scorer(runs, GROUPS))

    assert found[0] == found[1]
