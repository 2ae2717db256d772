from __future__ import annotations

import math

import numpy as np
import pytest

from corevital.assess.signals import compound_signals
from corevital.record import GenerationRecord
from tests.assess.records import attention_columns, logit_columns, record

NAN = math.nan


def found(generation: GenerationRecord) -> dict[str, float]:
    return {signal.name: signal.severity for signal in compound_signals(generation)}


def evidence(generation: GenerationRecord) -> list[str]:
    return [signal.evidence for signal in compound_signals(generation)]


def test_nothing_captured_shows_nothing() -> None:
    assert compound_signals(record()) == ()


def test_no_steps_show_nothing() -> None:
    assert compound_signals(record(logits=logit_columns(), basin=[[0.1]])) == ()


@pytest.mark.parametrize(
    ("entropy", "basin", "expected"),
    [
        (4.01, 0.29, {"context_loss": 0.75}),
        (3.99, 0.29, {}),
        (4.01, 0.31, {}),
    ],
)
def test_context_loss(entropy: float, basin: float, expected: dict[str, float]) -> None:
    generation = record(logits=logit_columns(entropy=[entropy] * 5), basin=[[basin]])

    assert found(generation) == expected


def test_context_loss_takes_the_mean_over_the_heads_that_exist() -> None:
    generation = record(logits=logit_columns(entropy=[5.0]), basin=[[0.1, 0.3], [0.2, NAN]])

    assert found(generation) == {"context_loss": 0.75}
    assert evidence(generation) == ["recent entropy 5.00 bits, mean basin score 0.20"]


def test_context_loss_needs_a_basin_score() -> None:
    assert found(record(logits=logit_columns(entropy=[5.0]), basin=[[NAN]])) == {}


@pytest.mark.parametrize(
    ("entropy", "margin", "expected"),
    [
        (4.01, 0.31, {"confident_confusion": 0.5}),
        (3.99, 0.31, {}),
        (4.01, 0.29, {}),
    ],
)
def test_confident_confusion(entropy: float, margin: float, expected: dict[str, float]) -> None:
    generation = record(logits=logit_columns(entropy=[entropy] * 5, margin=[margin] * 5))

    assert found(generation) == expected


def test_recent_means_the_last_five_observed_steps() -> None:
    entropy = [0.0, 5.0, 5.0, NAN, 5.0, 5.0, 5.0]
    margin = [0.0, 0.5, 0.5, 0.0, 0.5, 0.5, 0.5]

    generation = record(logits=logit_columns(entropy=entropy, margin=margin))

    assert evidence(generation) == ["recent entropy 5.00 bits, recent margin 0.40"]


@pytest.mark.parametrize(
    ("entropy", "margin", "surprisal", "expected"),
    [
        (0.051, -0.011, 0.051, {"degenerating_generation": 0.7}),
        (0.049, -0.011, 0.051, {}),
        (0.051, -0.009, 0.051, {}),
        (0.051, -0.011, 0.049, {}),
    ],
)
def test_degenerating_generation_by_slopes_per_step(
    entropy: float, margin: float, surprisal: float, expected: dict[str, float]
) -> None:
    steps = np.arange(10)
    generation = record(
        logits=logit_columns(
            entropy=1 + entropy * steps, margin=0.9 + margin * steps, surprisal=surprisal * steps
        )
    )

    assert found(generation) == expected


def test_degenerating_generation_states_the_slopes() -> None:
    steps = np.arange(10)
    generation = record(
        logits=logit_columns(entropy=0.1 * steps, margin=0.9 - 0.02 * steps, surprisal=0.25 * steps)
    )

    assert evidence(generation) == [
        "per step: entropy +0.100 bits, margin -0.020, surprisal +0.250 bits"
    ]


def test_degenerating_generation_needs_ten_steps() -> None:
    steps = np.arange(9)
    generation = record(
        logits=logit_columns(entropy=0.1 * steps, margin=0.9 - 0.1 * steps, surprisal=0.1 * steps)
    )

    assert found(generation) == {}


@pytest.mark.parametrize(
    ("collapsed", "entropy", "expected"),
    [
        (21, 3.51, {"attention_bottleneck": 0.65}),
        (19, 3.51, {}),
        (21, 3.49, {}),
    ],
)
def test_attention_bottleneck(collapsed: int, entropy: float, expected: dict[str, float]) -> None:
    generation = record(
        logits=logit_columns(entropy=[entropy] * 2),
        attention=attention_columns([[collapsed]] * 2, heads=100),
    )

    assert found(generation) == expected


def test_attention_bottleneck_ignores_steps_without_attention() -> None:
    generation = record(
        logits=logit_columns(entropy=[4.0] * 3),
        attention=attention_columns([[0], [0], [3]], observed=[[False], [False], [True]]),
    )

    assert evidence(generation) == ["30% of heads collapsed, mean entropy 4.00 bits"]


@pytest.mark.parametrize(
    ("entropy", "surprisal", "mass", "expected"),
    [
        (1.99, 0.99, 0.951, {"confident_repetition_risk": 0.4}),
        (2.01, 0.99, 0.951, {}),
        (1.99, 1.01, 0.951, {}),
        (1.99, 0.99, 0.949, {}),
    ],
)
def test_confident_repetition_risk(
    entropy: float, surprisal: float, mass: float, expected: dict[str, float]
) -> None:
    generation = record(
        logits=logit_columns(entropy=[entropy], surprisal=[surprisal], top_k_mass=[mass])
    )

    assert found(generation) == expected


def test_confident_repetition_risk_states_its_numbers() -> None:
    generation = record(
        logits=logit_columns(entropy=[0.5] * 6, surprisal=[0.25] * 6, top_k_mass=[0.999] * 6)
    )

    assert evidence(generation) == [
        "recent entropy 0.50 bits, recent surprisal 0.25 bits, recent top-k mass 0.999"
    ]


def test_signals_come_in_a_fixed_order() -> None:
    generation = record(
        logits=logit_columns(entropy=[5.0], margin=[0.5]),
        attention=attention_columns([[10]]),
        basin=[[0.1]],
    )

    assert list(found(generation)) == [
        "context_loss",
        "confident_confusion",
        "attention_bottleneck",
    ]
