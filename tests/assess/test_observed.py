from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess.observed import column_mean, column_std, logit_series, mean, observed, std
from tests.assess.records import floats, logit_columns

INF, NAN = math.inf, math.nan


def test_observed_keeps_finite_values_in_order() -> None:
    assert observed(floats([[3, NAN], [INF, 1], [-INF, 2]])).tolist() == [3, 1, 2]


def test_logit_series_are_empty_without_logits() -> None:
    series = logit_series(None)

    assert series.entropy.size == series.surprisal.size == 0
    assert series.margin.size == series.top_k_mass.size == 0


def test_logit_series_leave_each_column_its_own_observed_steps() -> None:
    series = logit_series(logit_columns(entropy=[1, NAN, 3], margin=[0.5, 0.25, 0.75]))

    assert series.entropy.tolist() == [1, 3]
    assert series.margin.tolist() == [0.5, 0.25, 0.75]
    assert series.surprisal.size == 0


def test_mean_of_nothing_is_nan() -> None:
    assert math.isnan(mean(np.empty(0)))
    assert mean(np.array([1.0, 2.0, 6.0])) == 3.0


def test_std_is_the_sample_standard_deviation() -> None:
    assert std(np.array([1.0, 3.0])) == pytest.approx(math.sqrt(2))
    assert math.isnan(std(np.array([1.0])))


def test_column_statistics_skip_what_was_not_observed() -> None:
    values = floats([[1, NAN, 5, NAN], [3, 7, INF, NAN], [NAN, 7, NAN, -INF]])

    np.testing.assert_allclose(column_mean(values), [2, 7, 5, NAN])
    np.testing.assert_allclose(column_std(values), [math.sqrt(2), 0, NAN, NAN])


@pytest.mark.parametrize("shape", [(0, 2), (2, 0), (0, 0)])
def test_column_statistics_of_empty_columns(shape: tuple[int, int]) -> None:
    values = np.empty(shape, dtype=np.float32)

    assert np.isnan(column_mean(values)).all()
    assert np.isnan(column_std(values)).all()
    assert column_mean(values).shape == column_std(values).shape == shape[1:]
