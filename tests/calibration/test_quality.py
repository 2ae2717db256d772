"""How well scores tell failures, against scikit-learn and values computed by hand."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import brier_score_loss, roc_auc_score

from corevital.calibration.quality import auroc, brier, ece, quality, reliability

LABELLED = st.lists(
    # Few different scores, so that many are tied.
    st.tuples(st.integers(0, 8).map(lambda n: n / 8), st.booleans()),
    min_size=2,
    max_size=60,
).filter(lambda runs: len({failed for _, failed in runs}) == 2)


def arrays(runs: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    scores, failed = zip(*runs, strict=True)
    return np.array(scores), np.array(failed)


@given(LABELLED)
def test_auroc_and_brier_are_those_of_scikit_learn(runs: list[tuple[float, bool]]) -> None:
    scores, failed = arrays(runs)

    assert auroc(scores, failed) == pytest.approx(roc_auc_score(failed, scores))
    assert brier(scores, failed) == pytest.approx(brier_score_loss(failed, scores))


def test_auroc_counts_pairs_and_ties_half() -> None:
    failed = np.array([True, True, False, False])

    assert auroc(np.array([4.0, 3.0, 2.0, 1.0]), failed) == 1.0
    assert auroc(np.array([1.0, 2.0, 3.0, 4.0]), failed) == 0.0
    assert auroc(np.array([4.0, 1.0, 2.0, 3.0]), failed) == 0.5
    assert auroc(np.array([3.0, 2.0, 2.0, 1.0]), failed) == 3.5 / 4
    assert auroc(np.full(4, 0.7), failed) == 0.5


@pytest.mark.parametrize("failed", [True, False])
def test_auroc_needs_failures_and_others(failed: bool) -> None:
    with pytest.raises(ValueError, match="needs failures and other runs"):
        auroc(np.arange(3.0), np.full(3, failed))


def test_ece_is_the_mean_difference_of_what_was_said_and_found() -> None:
    said = np.array([0.1, 0.2, 0.3, 0.6, 0.8, 0.9])
    failed = np.array([False, True, False, False, True, True])

    # Bins of three: 0.2 said and 1/3 found, 0.7667 said and 2/3 found.
    assert ece(said, failed, bins=2) == pytest.approx((abs(0.2 - 1 / 3) + 2.3 / 3 - 2 / 3) / 2)
    assert ece(said, failed, bins=1) == pytest.approx(abs(said.mean() - 0.5))


def test_bins_hold_equally_many_runs_in_order() -> None:
    random = np.random.default_rng(0)
    said = random.random(250)

    means, shares, counts = reliability(said, random.random(250) < said)

    assert counts.tolist() == [25] * 10
    assert (np.diff(means) > 0).all()
    assert ((shares >= 0) & (shares <= 1)).all()


@given(LABELLED, st.integers(1, 12), st.randoms(use_true_random=False))
def test_the_order_of_the_runs_makes_no_difference(
    runs: list[tuple[float, bool]], bins: int, random: Random
) -> None:
    scores, failed = arrays(runs)
    shuffled = runs.copy()
    random.shuffle(shuffled)

    assert ece(*arrays(shuffled), bins) == pytest.approx(ece(scores, failed, bins))
    assert sum(reliability(scores, failed, bins)[2]) == len(runs)


def test_runs_with_the_same_probability_share_a_bin() -> None:
    # As they come from a file: first those that failed.
    failed = np.array([True] * 50 + [False] * 50)

    assert ece(np.full(100, 0.5), failed) == 0.0
    assert ece(np.full(100, 0.8), failed) == pytest.approx(0.3)


def test_a_score_that_tells_the_chances_has_a_small_ece_and_any_other_a_large_one() -> None:
    random = np.random.default_rng(1)
    said = random.random(20_000)
    failed = random.random(20_000) < said

    assert ece(said, failed) < 0.015
    assert ece(said**2, failed) == pytest.approx(1 / 2 - 1 / 3, abs=0.02)
    assert ece(1.0 - said, failed) == pytest.approx(0.5, abs=0.02)


def test_fewer_runs_than_bins() -> None:
    means, shares, counts = reliability(np.array([0.2, 0.9]), np.array([False, True]))

    assert (means.tolist(), shares.tolist(), counts.tolist()) == ([0.2, 0.9], [0.0, 1.0], [1, 1])


def test_only_probabilities_are_judged_as_such() -> None:
    scores, failed = np.array([0.1, 0.4, 0.9]), np.array([False, True, True])

    said = quality(scores, failed, probabilities=True)
    ranked = quality(10 * scores, failed, probabilities=False)

    assert (said.auroc, ranked.auroc) == (1.0, 1.0)
    assert said.brier == pytest.approx((0.01 + 0.36 + 0.01) / 3)
    assert said.ece == pytest.approx((0.1 + 0.6 + 0.1) / 3)
    assert (ranked.ece, ranked.brier) == (None, None)
