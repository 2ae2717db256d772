from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess.trend import rolling_mean, slope


def test_slope_of_a_line_is_its_rise_per_step() -> None:
    assert slope(np.array([5.0, 3.0, 1.0, -1.0])) == pytest.approx(-2.0)
    assert slope(np.array([1.0, 4.0])) == pytest.approx(3.0)


def test_slope_is_the_least_squares_one() -> None:
    values = np.array([0.3, 2.5, 1.0, 4.0, 3.2])

    assert slope(values) == pytest.approx(np.polyfit(np.arange(5), values, 1)[0])


@pytest.mark.parametrize("size", [0, 1])
def test_slope_needs_two_values(size: int) -> None:
    assert math.isnan(slope(np.ones(size)))


def test_rolling_mean_of_every_full_window() -> None:
    assert rolling_mean(np.array([1.0, 2.0, 6.0, 4.0]), 3).tolist() == [3.0, 4.0]
    assert rolling_mean(np.array([1.0, 2.0, 6.0]), 3).tolist() == [3.0]


def test_rolling_mean_is_empty_without_a_full_window() -> None:
    assert rolling_mean(np.ones(2), 3).size == 0
