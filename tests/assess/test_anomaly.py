from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess.anomaly import mid_layer_anomaly
from tests.assess.records import hidden_columns

NAN = math.nan


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        pytest.param([1, 7.9, 1], False, id="just below the multiple"),
        pytest.param([1, 8.1, 1], True, id="just above the multiple"),
        pytest.param([1, 1, 99], False, id="the last third is not the middle"),
        pytest.param([NAN, 1, 9, 1, 1, 1], True, id="a norm that is missing has no part in it"),
        pytest.param([1, 1, 9, 1, 1, 1, 1], True, id="seven layers: middle from the third"),
        pytest.param([1, 1, 1, 9, 1, 1, 1], True, id="seven layers: middle to the fourth"),
        pytest.param([1, 1, 1, 1, 9, 1, 1], False, id="seven layers: the fifth is late"),
        pytest.param([1, 9], False, id="two layers have no thirds"),
        pytest.param([9], False, id="summary capture"),
        pytest.param([], False, id="no layers"),
    ],
)
def test_a_middle_norm_above_eight_times_the_early_ones(norms: list[float], expected: bool) -> None:
    assert mid_layer_anomaly(hidden_columns([norms]), 8.0) is expected


def test_the_reference_is_the_median_of_the_first_third() -> None:
    early, middle, late = [1, 1, 100], [9, 1, 1], [1, 1, 1]

    assert mid_layer_anomaly(hidden_columns([early + middle + late]), 8.0)


def test_each_step_has_its_own_reference() -> None:
    assert not mid_layer_anomaly(hidden_columns([[1, 1, 1], [9, 9, 9]]), 8.0)


def test_any_step_is_enough() -> None:
    assert mid_layer_anomaly(hidden_columns([[1, 1, 1], [1, 9, 1], [1, 1, 1]]), 8.0)


def test_the_multiple_is_the_profiles() -> None:
    assert mid_layer_anomaly(hidden_columns([[1, 6, 1]]), 5.0)
    assert not mid_layer_anomaly(hidden_columns([[1, 6, 1]]), 8.0)


@pytest.mark.parametrize(("layer", "expected"), [(0, False), (1, True), (2, False)])
def test_nan_or_inf_in_the_middle_third_only(layer: int, expected: bool) -> None:
    non_finite = np.arange(3) == layer

    hidden = hidden_columns([[1, 1, 1]], non_finite=[non_finite])

    assert mid_layer_anomaly(hidden, 8.0) is expected


def test_fewer_than_three_observed_layers_show_nothing() -> None:
    assert not mid_layer_anomaly(hidden_columns([[1, 9, NAN]]), 8.0)
    assert not mid_layer_anomaly(
        hidden_columns([[NAN, NAN, 1]], non_finite=[[False, True, False]]), 8.0
    )


def test_steps_without_early_layers_are_left_out() -> None:
    only_last_layer = [NAN, NAN, 50.0]

    assert not mid_layer_anomaly(hidden_columns([only_last_layer, [1.0, 1.0, 1.0]]), 8.0)
    assert mid_layer_anomaly(hidden_columns([only_last_layer, [1.0, 9.0, 1.0]]), 8.0)


def test_norms_of_zero_are_no_reference() -> None:
    assert not mid_layer_anomaly(hidden_columns([[0, 1, 1]]), 8.0)
