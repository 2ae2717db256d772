from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess import EarlyWarning, HealthFlags
from corevital.assess.early_warning import (
    early_warning,
    entropy_accelerating,
    entropy_margin_divergence,
    margin_collapsed,
    margin_declining,
    surprisal_volatile,
)
from corevital.record import LogitColumns
from tests.assess.records import logit_columns, record

HEALTHY = HealthFlags()
NAN = math.nan


def accelerating(steps: int) -> list[float]:
    return [0.1 * step**2 for step in range(steps)]


def test_nothing_captured_warns_of_nothing() -> None:
    assert early_warning(record(), HEALTHY) == EarlyWarning(0.0, ())


@pytest.mark.parametrize(
    ("entropy", "expected"),
    [
        pytest.param(accelerating(10), True, id="rises faster and faster"),
        pytest.param(accelerating(9), False, id="nine steps are too few"),
        pytest.param([0.25 * step for step in range(10)], False, id="rises steadily"),
        pytest.param(list(reversed(accelerating(10))), False, id="falls"),
        pytest.param([float(np.sqrt(step)) for step in range(10)], False, id="levels off"),
        pytest.param([9.0] * 20 + accelerating(10), True, id="only the end counts"),
        pytest.param([0.0] * 7 + [1.0, 3.0, 2.0], True, id="smoothing hides a dip"),
        pytest.param(
            [0.0] * 3 + [5.0, 0.0, 0.0, 0.0, 1.0, 2.0, 9.0], False, id="one change is down"
        ),
    ],
)
def test_entropy_accelerating(entropy: list[float], expected: bool) -> None:
    assert entropy_accelerating(np.array(entropy)) is expected


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        pytest.param([0.09] * 5, True, id="all just below"),
        pytest.param([0.09, 0.09, 0.11, 0.09, 0.09], False, id="one just above"),
        pytest.param([0.9, 0.09, 0.09, 0.09, 0.09, 0.09], True, id="only the last five count"),
        pytest.param([0.01] * 4, False, id="four steps are too few"),
    ],
)
def test_margin_collapsed(margin: list[float], expected: bool) -> None:
    assert margin_collapsed(np.array(margin)) is expected


@pytest.mark.parametrize(
    ("margin", "expected"),
    [
        pytest.param([1.0] * 5 + [0.29] * 5, True, id="just below the ratio"),
        pytest.param([1.0] * 5 + [0.31] * 5, False, id="just above the ratio"),
        pytest.param([0.4] * 5 + [1.0] * 5 + [0.29] * 5, False, id="early means the first five"),
        pytest.param([1.0, 0.0, 0.0, 0.0], False, id="four steps are too few"),
        pytest.param([0.0] * 10, False, id="nothing to fall from"),
    ],
)
def test_margin_declining(margin: list[float], expected: bool) -> None:
    assert margin_declining(np.array(margin)) is expected


@pytest.mark.parametrize(
    ("surprisal", "expected"),
    [
        pytest.param([1, 1, 1, 1, 11.5], True, id="variation of 1.51"),
        pytest.param([1, 1, 1, 1, 11.0], False, id="variation of 1.49"),
        pytest.param([0, 0, 9, 1, 1, 1, 1, 1], False, id="only the last five count"),
        pytest.param([0, 0, 0, 0, 0.01], True, id="however small"),
        pytest.param([0, 0, 0, 9], False, id="four steps are too few"),
        pytest.param([0, 0, 0, 0, 0], False, id="no surprise at all"),
    ],
)
def test_surprisal_volatile(surprisal: list[float], expected: bool) -> None:
    assert surprisal_volatile(np.array(surprisal, dtype=float)) is expected


@pytest.mark.parametrize(
    ("entropy", "margin", "steps", "expected"),
    [
        (4.01, 0.31, 5, True),
        (3.99, 0.31, 5, False),
        (4.01, 0.29, 5, False),
        (4.01, 0.31, 4, False),
    ],
)
def test_entropy_margin_divergence(
    entropy: float, margin: float, steps: int, expected: bool
) -> None:
    observed = entropy_margin_divergence(np.full(steps, entropy), np.full(steps, margin))

    assert observed is expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (HealthFlags(repetition_loop=True), EarlyWarning(0.9, ("repetition_loop",))),
        (HealthFlags(mid_layer_anomaly=True), EarlyWarning(0.6, ("mid_layer_anomaly",))),
        (
            HealthFlags(attention_collapse=True, attention_collapse_severity=0.8),
            EarlyWarning(0.4, ("attention_collapse",)),
        ),
        (HealthFlags(nan_or_inf=True, high_entropy_steps=9), EarlyWarning(0.0, ())),
    ],
)
def test_flags_that_are_carried_over(flags: HealthFlags, expected: EarlyWarning) -> None:
    assert early_warning(record(), flags) == expected


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (
            logit_columns(entropy=accelerating(10)),
            EarlyWarning(0.7, ("entropy_accelerating",)),
        ),
        (logit_columns(margin=[0.05] * 5), EarlyWarning(0.6, ("margin_collapsed",))),
        (
            logit_columns(margin=[0.9] * 5 + [0.2] * 5),
            EarlyWarning(0.5, ("margin_declining",)),
        ),
        (
            logit_columns(surprisal=[0, 0, 0, 0, 9]),
            EarlyWarning(0.5, ("surprisal_volatile",)),
        ),
        (
            logit_columns(entropy=[5] * 5, margin=[0.5] * 5),
            EarlyWarning(0.55, ("entropy_margin_divergence",)),
        ),
    ],
)
def test_each_warning_from_the_logits_has_its_severity(
    columns: LogitColumns, expected: EarlyWarning
) -> None:
    assert early_warning(record(logits=columns), HEALTHY) == expected


def test_a_collapsed_margin_is_not_also_called_declining() -> None:
    margin = [0.9] * 5 + [0.05] * 5

    assert early_warning(record(logits=logit_columns(margin=margin)), HEALTHY) == EarlyWarning(
        0.6, ("margin_collapsed",)
    )


def test_the_score_is_the_largest_severity_and_the_order_is_fixed() -> None:
    generation = record(logits=logit_columns(margin=[0.05] * 5, surprisal=[0, 0, 0, 0, 9]))
    flags = HealthFlags(attention_collapse=True, attention_collapse_severity=0.4)

    assert early_warning(generation, flags) == EarlyWarning(
        0.6, ("margin_collapsed", "surprisal_volatile", "attention_collapse")
    )


def test_steps_that_were_not_observed_do_not_count() -> None:
    four_of_seven = [0.05, NAN, 0.05, NAN, 0.05, NAN, 0.05]

    assert early_warning(
        record(logits=logit_columns(margin=four_of_seven)), HEALTHY
    ) == EarlyWarning(0.0, ())
    assert early_warning(
        record(logits=logit_columns(margin=[*four_of_seven, 0.05])), HEALTHY
    ) == EarlyWarning(0.6, ("margin_collapsed",))
