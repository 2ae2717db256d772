"""Sketches answer for the values that they hold, however they were put together."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corevital.calibration import sketch
from corevital.calibration.sketch import ACCURACY, LEAST, MOST, SIZE, Counts

IN_RANGE = st.floats(LEAST, MOST, exclude_min=True)
ANY = st.floats(width=32)


def sketch_of(values: list[float]) -> Counts:
    return sketch.tally(sketch.bucket(np.asarray(values, dtype=np.float64).reshape(-1, 1)))[0]


@given(IN_RANGE)
def test_a_bucket_stands_for_its_values(value: float) -> None:
    found = sketch.VALUES[sketch.bucket(value)]

    assert found == pytest.approx(value, rel=ACCURACY * 1.0001)


@pytest.mark.parametrize("value", [0.0, -0.0, -1e-7, LEAST / 2, LEAST])
def test_what_is_next_to_zero_is_zero(value: float) -> None:
    assert sketch.VALUES[sketch.bucket(value)] == 0.0


def test_what_is_too_large_is_in_the_last_bucket() -> None:
    assert sketch.bucket([MOST * 2, 1e300]).tolist() == [SIZE - 1, SIZE - 1]


@given(st.lists(ANY))
def test_only_finite_values_are_counted(values: list[float]) -> None:
    assert sketch_of(values).sum() == sum(math.isfinite(value) for value in values)


@given(st.lists(IN_RANGE, min_size=1), st.floats(0.0, 1.0))
def test_a_quantile_is_relatively_accurate(values: list[float], share: float) -> None:
    exact = np.quantile(values, share, method="lower")

    assert sketch.quantile(sketch_of(values), share) == pytest.approx(exact, rel=ACCURACY * 1.0001)


@given(st.lists(ANY), st.lists(ANY), st.lists(ANY))
def test_merging_is_adding_in_any_order(
    first: list[float], second: list[float], third: list[float]
) -> None:
    parts = [sketch_of(values) for values in (first, second, third)]
    whole = sketch_of(first + second + third)

    assert ((parts[0] + parts[1]) + parts[2] == whole).all()
    assert (parts[2] + (parts[1] + parts[0]) == whole).all()


@given(st.lists(IN_RANGE, min_size=1))
def test_the_mean_is_relatively_accurate(values: list[float]) -> None:
    assert sketch.mean(sketch_of(values)) == pytest.approx(np.mean(values), rel=ACCURACY * 1.0001)


def test_an_empty_sketch_has_no_statistics() -> None:
    empty, full = sketch_of([math.nan]), sketch_of([1.0])

    assert math.isnan(sketch.quantile(empty, 0.5))
    assert math.isnan(sketch.mean(empty))
    assert math.isnan(sketch.wasserstein(sketch.cumulative(empty), sketch.cumulative(full)))


def test_columns_are_sketched_side_by_side() -> None:
    both = sketch.tally(sketch.bucket([[1.0, 100.0], [2.0, math.nan]]))

    assert (both[0] == sketch_of([1.0, 2.0])).all()
    assert (both[1] == sketch_of([100.0])).all()


@given(st.lists(IN_RANGE, min_size=1, max_size=20), st.floats(1.05, 1e3))
def test_the_distance_of_a_shifted_distribution_is_the_shift(
    values: list[float], factor: float
) -> None:
    moved = np.clip(np.asarray(values) * factor, None, MOST)
    first, second = (sketch.cumulative(sketch_of(list(each))) for each in (values, moved))

    # Each of the two is told to within the accuracy.
    tolerance = ACCURACY * 1.0001 * float(np.mean(values) + np.mean(moved))
    shift = np.mean(moved) - np.mean(values)
    assert sketch.wasserstein(first, second) == pytest.approx(shift, abs=tolerance)


@given(st.lists(IN_RANGE, min_size=1), st.lists(IN_RANGE, min_size=1))
def test_the_distance_is_a_distance(first: list[float], second: list[float]) -> None:
    here, there = sketch.cumulative(sketch_of(first)), sketch.cumulative(sketch_of(second))

    assert sketch.wasserstein(here, here) == 0.0
    assert sketch.wasserstein(here, there) == sketch.wasserstein(there, here) >= 0.0
