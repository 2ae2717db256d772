from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess import LayerBlame
from corevital.assess.blame import layer_blame
from tests.assess.records import attention_columns, hidden_columns, record

NAN = math.nan


def test_nothing_captured_blames_no_layer() -> None:
    assert layer_blame(record()) == ()


def test_nan_or_inf_in_a_hidden_state() -> None:
    hidden = hidden_columns([[1, 1], [1, 1]], non_finite=[[False, False], [False, True]])

    assert layer_blame(record(hidden=hidden)) == (
        LayerBlame(1, 1.0, ("hidden state has NaN or Inf in 1 of 2 steps",)),
    )


def test_nan_or_inf_in_attention() -> None:
    attention = attention_columns([[0, 0]], non_finite=[[True, False]])

    assert layer_blame(record(attention=attention)) == (
        LayerBlame(0, 1.0, ("attention has NaN or Inf in 1 of 1 steps",)),
    )


@pytest.mark.parametrize(
    ("collapsed", "blamed"), [([1, 1, 0, 0], False), ([1, 1, 1, 0], True), ([0, 0, 0, 9], False)]
)
def test_collapsed_heads_in_more_than_half_of_the_steps(collapsed: list[int], blamed: bool) -> None:
    attention = attention_columns(np.array(collapsed)[:, None])

    blame = layer_blame(record(attention=attention))

    assert blame == ((LayerBlame(0, 0.4, ("collapsed heads in 3 of 4 steps",)),) if blamed else ())


def test_collapse_is_counted_over_the_observed_steps() -> None:
    attention = attention_columns(
        [[0, 1], [0, 1], [1, 0]], observed=[[False, True], [False, False], [True, True]]
    )

    assert layer_blame(record(attention=attention)) == (
        LayerBlame(0, 0.4, ("collapsed heads in 1 of 1 steps",)),
    )


@pytest.mark.parametrize(("layers", "blamed"), [(8, False), (9, True)])
def test_a_norm_more_than_two_and_a_half_deviations_above_the_others(
    layers: int, blamed: bool
) -> None:
    """One outlier among n equal layers deviates by (n - 1) / sqrt(n): 2.47 of 8, 2.67 of 9."""
    norms = np.ones(layers)
    norms[2] = 10

    blame = layer_blame(record(hidden=hidden_columns([norms])))

    assert blame == (
        (
            LayerBlame(
                2,
                0.5,
                ("mean L2 norm 10 is 2.7 standard deviations above the mean over layers, 2",),
            ),
        )
        if blamed
        else ()
    )


def test_a_small_norm_is_not_blamed() -> None:
    norms = np.full(9, 10.0)
    norms[2] = 1

    assert layer_blame(record(hidden=hidden_columns([norms]))) == ()


def test_equal_norms_are_not_blamed() -> None:
    assert layer_blame(record(hidden=hidden_columns(np.full((3, 32), 0.1)))) == ()


@pytest.mark.parametrize(
    ("norms", "reasons"),
    [
        pytest.param([1, 2, 3], (), id="variation of exactly a half"),
        pytest.param(
            [1, 2, 3.1],
            ("L2 norm varies over 3 steps by 0.52 of its mean, 2.033",),
            id="just above",
        ),
        pytest.param(
            [0.1, 0.2, 0.4],
            ("L2 norm varies over 3 steps by 0.65 of its mean, 0.2333",),
            id="however small",
        ),
        pytest.param([1, 100], (), id="two steps are too few"),
        pytest.param([1, NAN, 100], (), id="two observed steps are too few"),
        pytest.param(
            [NAN, 1, 2, 3.1],
            ("L2 norm varies over 3 steps by 0.52 of its mean, 2.033",),
            id="only observed steps count",
        ),
        pytest.param([0, 0, 0], (), id="no norm at all"),
    ],
)
def test_a_norm_that_varies_over_steps(norms: list[float], reasons: tuple[str, ...]) -> None:
    hidden = hidden_columns(np.array(norms)[:, None])

    blame = layer_blame(record(hidden=hidden))

    assert blame == ((LayerBlame(0, 0.3, reasons),) if reasons else ())


def test_layers_are_named_by_their_index_in_the_model() -> None:
    hidden = hidden_columns([[1.0]], layers=[11], non_finite=[[True]])
    attention = attention_columns([[3, 0]], layers=[4, 7])

    assert [blame.layer for blame in layer_blame(record(hidden=hidden, attention=attention))] == [
        4,
        11,
    ]


def test_a_layer_keeps_every_reason_and_the_worst_severity() -> None:
    hidden = hidden_columns([[1.0], [1.0], [10.0]], layers=[3])
    attention = attention_columns(
        [[1], [1], [1]], layers=[3], non_finite=[[False], [False], [True]]
    )

    assert layer_blame(record(hidden=hidden, attention=attention)) == (
        LayerBlame(
            3,
            1.0,
            (
                "L2 norm varies over 3 steps by 1.30 of its mean, 4",
                "attention has NaN or Inf in 1 of 3 steps",
                "collapsed heads in 3 of 3 steps",
            ),
        ),
    )
