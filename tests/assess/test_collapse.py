from __future__ import annotations

import numpy as np
import pytest

from corevital.assess.collapse import attention_collapse_severity, collapse_rate
from tests.assess.records import attention_columns


def test_rate_is_the_share_of_collapsed_heads_over_layers() -> None:
    attention = attention_columns([[0, 2], [10, 5]], heads=10)

    np.testing.assert_allclose(collapse_rate(attention), [0.1, 0.75])


def test_rate_weighs_layers_by_their_heads() -> None:
    assert collapse_rate(attention_columns([[2, 0]], heads=[2, 6])).tolist() == [0.25]


def test_rate_of_a_single_head() -> None:
    assert collapse_rate(attention_columns([[0], [1]], heads=1)).tolist() == [0.0, 1.0]


def test_rate_leaves_out_steps_and_layers_that_were_not_observed() -> None:
    attention = attention_columns(
        [[0, 0], [0, 5], [5, 5]], heads=10, observed=[[False, False], [False, True], [True, True]]
    )

    assert collapse_rate(attention).tolist() == [0.5, 0.5]


def test_rate_is_empty_without_attention() -> None:
    assert collapse_rate(None).size == 0
    assert collapse_rate(attention_columns(np.empty((3, 0)))).size == 0
    assert collapse_rate(attention_columns(np.empty((0, 3)))).size == 0


@pytest.mark.parametrize(
    ("rate", "severity"),
    [
        pytest.param([0, 0, 0, 0.14], 0.0, id="rise just below moderate"),
        pytest.param([0, 0, 0, 0.16], 0.2, id="rise just above moderate"),
        pytest.param([0, 0, 0, 0.24], 0.2, id="rise just below strong"),
        pytest.param([0, 0, 0, 0.26], 0.4, id="rise just above strong"),
        pytest.param([0, 0, 0.9], 0.0, id="three steps are no trend"),
        pytest.param([0.5, 0.5, 0.5, 0.5], 0.0, id="a steady rate is no collapse"),
        pytest.param([0, 0.6, 0, 0], 0.4, id="the peak may lie anywhere"),
        pytest.param([0.69], 0.0, id="mean just below catastrophic"),
        pytest.param([0.71], 0.8, id="mean just above catastrophic"),
        pytest.param([0.4, 0.9, 0.9, 0.9], 0.8, id="catastrophic outweighs the trend"),
        pytest.param([], 0.0, id="no steps"),
    ],
)
def test_severity(rate: list[float], severity: float) -> None:
    assert attention_collapse_severity(np.array(rate, dtype=float)) == severity


def test_baseline_is_the_first_third_of_a_short_generation() -> None:
    rising_within_baseline = np.array([0.0, 0.2, 0.2, 0.2, 0.2, 0.2])  # mean of two is 0.1

    assert attention_collapse_severity(rising_within_baseline) == 0.0
    assert attention_collapse_severity(rising_within_baseline[:5]) == 0.2  # mean of one is 0


def test_baseline_is_at_most_five_steps() -> None:
    rate = np.array([0.0] * 5 + [0.16] * 25)  # the first six have mean 0.03

    assert attention_collapse_severity(rate) == 0.2


@pytest.mark.parametrize(
    ("rate", "severity"),
    [
        pytest.param([], 0.3, id="by itself"),
        pytest.param([0, 0, 0, 0.16], 0.3, id="outweighs a moderate rise"),
        pytest.param([0, 0, 0, 0.26], 0.4, id="a strong rise outweighs it"),
        pytest.param([0.71], 0.8, id="catastrophic outweighs it"),
    ],
)
def test_severity_beyond_a_baseline(rate: list[float], severity: float) -> None:
    steps = np.array(rate, dtype=float)

    assert attention_collapse_severity(steps, beyond_baseline=True) == severity
