"""How much a figure of the benchmark would differ with other runs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.resampling import auroc_interval, difference_interval, perfect_ece
from corevital.calibration.quality import auroc, ece


def scored(runs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Failures score one standard deviation higher."""
    random = np.random.default_rng(seed)
    failed = random.random(runs) < 0.4
    return random.normal(size=runs) + failed, failed


def test_the_interval_holds_the_true_value_as_often_as_it_says() -> None:
    truth = auroc(*scored(200_000, seed=99))
    intervals = [auroc_interval(*scored(120, seed), draws=300) for seed in range(100)]

    assert 88 <= sum(low <= truth <= high for low, high in intervals) <= 100


def test_more_runs_narrow_it() -> None:
    few, many = (auroc_interval(*scored(runs), draws=300) for runs in (100, 1600))

    assert many.high - many.low == pytest.approx((few.high - few.low) / 4, rel=0.3)


def test_a_score_is_no_better_than_itself() -> None:
    scores, failed = scored(100)

    assert difference_interval(scores, scores, failed, draws=100) == (0.0, 0.0)


def test_a_difference_is_taken_on_the_same_runs() -> None:
    """Two scores that are nearly the same differ less than either would from run to run."""
    scores, failed = scored(300)
    nearly = scores + 0.05 * np.random.default_rng(1).normal(size=300)

    low, high = difference_interval(scores, nearly, failed, draws=300)
    alone = auroc_interval(scores, failed, draws=300)

    assert low <= 0.0 <= high
    assert high - low < (alone.high - alone.low) / 3


def test_a_perfect_score_shows_some_error_that_shrinks_with_more_runs() -> None:
    random = np.random.default_rng(0)
    few, many = random.random(100), random.random(10_000)

    (error, interval), (smaller, _) = perfect_ece(few, draws=200), perfect_ece(many, draws=50)

    assert interval.low < error < interval.high
    assert error > 0.05 > 0.015 > smaller
    assert ece(few, random.random(100) < few) == pytest.approx(error, abs=0.06)
