"""Runs like those of the baseline are close to it; others are far, and it is said where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corevital.assess.divergence import Direction
from corevital.calibration.divergence import MOST_ANOMALIES, Reference
from corevital.record import GenerationRecord
from tests.assess.records import logit_columns, record
from tests.calibration.runs import (
    baseline_of,
    healthy_baseline,
    healthy_record,
    reference,
    with_logits,
    with_norms,
)

REFERENCE = reference()
HELD_OUT = range(1000, 1100)


def score(made: GenerationRecord, against: Reference = REFERENCE) -> float:
    found = against.divergence(made).score
    assert found is not None
    return found


@pytest.mark.parametrize("steps", [1, 2, 5, 24, 100])
def test_healthy_runs_of_any_length_are_close(steps: int) -> None:
    scores = [score(healthy_record(seed, steps)) for seed in HELD_OUT]

    # A healthy run lies beyond the limit once in as many runs as the baseline has.
    assert np.mean(np.asarray(scores) > 0.5) <= 0.08
    assert np.median(scores) < 0.35


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize(
    ("factor", "direction"), [(8.0, Direction.HIGHER), (0.125, Direction.LOWER)]
)
def test_a_layer_with_other_norms_is_named(layer: int, factor: float, direction: Direction) -> None:
    found = REFERENCE.divergence(with_norms(healthy_record(1000), layer, factor))
    worst = found.anomalies[0]

    assert found.score is not None
    assert found.score > 0.5
    assert (worst.quantity, worst.layers, worst.worst_layer) == ("hidden.l2_norm", (layer,), layer)
    assert worst.direction is direction
    assert worst.distance > 1.0
    assert f"L2 norm of layer {layer} {direction}: " in worst.description


def test_consecutive_layers_are_one_anomaly() -> None:
    made = healthy_record(1000)
    for layer, factor in ((1, 10.0), (2, 30.0), (3, 10.0)):
        made = with_norms(made, layer, factor)
    (found,) = REFERENCE.divergence(made).anomalies

    assert (found.layers, found.worst_layer) == ((1, 2, 3), 2)
    assert found.description.startswith("L2 norm of layers 1 to 3, most at 2, higher: ")


def test_layers_that_move_apart_are_two() -> None:
    made = with_norms(with_norms(healthy_record(1000), 1, 50.0), 2, 0.02)

    assert {(each.layers, each.direction) for each in REFERENCE.divergence(made).anomalies} == {
        ((1,), Direction.HIGHER),
        ((2,), Direction.LOWER),
    }


def test_the_numbers_are_in_the_description() -> None:
    made = with_logits(healthy_record(1000), entropy=np.full(24, 12.0, dtype=np.float32))
    (found,) = REFERENCE.divergence(made).anomalies

    assert found.layers == ()
    assert found.worst_layer is None
    start, _, rest = found.description.partition(", usually ")
    assert start in ("entropy higher: 12 on average", "entropy higher: 11.9 on average")
    assert rest.endswith(f"; {found.distance:.1f} times the limit of healthy runs")


def test_a_distribution_may_be_too_wide_or_too_narrow() -> None:
    def with_entropy(seed: int, spread: float) -> GenerationRecord:
        entropy = np.random.default_rng(seed).uniform(3.0 - spread, 3.0 + spread, 64)
        return record(logits=logit_columns(entropy=entropy))

    against = Reference(baseline_of([with_entropy(seed, 1.0) for seed in range(20)]), "model@0")
    (wide,) = against.divergence(with_entropy(99, 2.9)).anomalies
    (narrow,) = against.divergence(with_entropy(99, 0.05)).anomalies

    assert wide.direction is Direction.WIDER
    assert narrow.direction is Direction.NARROWER


def test_more_collapsed_heads_are_told_to_the_assessment() -> None:
    made = healthy_record(1000)
    assert made.attention is not None
    collapsed = made.attention.collapsed_heads.copy()
    collapsed[:, 3] = 7
    broken = replace(made, attention=replace(made.attention, collapsed_heads=collapsed))

    assert REFERENCE.divergence(broken).more_collapsed_heads
    assert not REFERENCE.divergence(made).more_collapsed_heads
    assert not REFERENCE.divergence(with_norms(made, 1, 50.0)).more_collapsed_heads


def test_anomalies_are_the_worst_first_and_bounded() -> None:
    steps, layers = 24, 40
    wide = baseline_of([healthy_record(seed, steps, layers) for seed in range(40)])
    made = healthy_record(1000, steps, layers)
    for layer in range(0, layers, 2):
        made = with_norms(made, layer, 20.0 + layer)
    found = Reference(wide, "model@0").divergence(made).anomalies

    assert len(found) == MOST_ANOMALIES
    distances = [each.distance for each in found]
    assert distances == sorted(distances, reverse=True)


def test_what_was_not_observed_is_not_compared() -> None:
    made = with_norms(healthy_record(1000), 1, 50.0)
    assert made.attention is not None

    assert score(replace(made, hidden=None, attention=None)) < 0.5
    assert score(replace(made, logits=None)) > 0.5
    assert REFERENCE.divergence(record()).score is None
    assert REFERENCE.divergence(record()).anomalies == ()


def test_layers_that_the_baseline_lacks_are_not_compared() -> None:
    made = with_norms(healthy_record(1000, layers=6), 5, 1e6)

    assert all(5 not in each.layers for each in REFERENCE.divergence(made).anomalies)


def test_steps_count_for_each_quantity_by_itself() -> None:
    made = healthy_record(1000)
    assert made.hidden is not None
    norms = made.hidden.l2_norm.copy()
    norms[:-1] = np.nan
    late = replace(made, hidden=replace(made.hidden, l2_norm=norms))

    assert score(late) == pytest.approx(score(made), abs=0.2)


@settings(max_examples=50)
@given(
    st.lists(st.floats(width=32), min_size=1, max_size=30),
    st.sampled_from(["entropy", "surprisal", "margin"]),
)
def test_any_values_give_a_bounded_result(values: list[float], name: str) -> None:
    found = REFERENCE.divergence(record(logits=logit_columns(**{name: values})))

    assert (found.score is None) == (not np.isfinite(values).any())
    assert found.score is None or 0.0 <= found.score <= 1.0
    assert all(np.isfinite(each.distance) for each in found.anomalies)


def test_says_which_baseline_it_was() -> None:
    against = Reference(healthy_baseline(10), "model@abc")

    assert against.divergence(record()).baseline == "model@abc"
