"""RAUQ is what its paper says, whatever shape the record has."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corevital.assess.rauq import ALPHA, rauq
from corevital.record import AttentionColumns, Floats, LogitColumns, PreviousTokenWeight
from tests.assess.records import attention_columns, floats, logit_columns

HOSTILE = st.floats(width=32) | st.sampled_from([0.0, 1.0, np.nan, np.inf, -np.inf, 1e-45])
MOST_BITS = 1022.0


def with_weight(weight: Any) -> AttentionColumns:
    """``weight`` is ``[S, M, H]``; the layers are the middle ones of a model of three times M."""
    values = floats(weight)
    steps, layers = values.shape[:2]
    previous = PreviousTokenWeight(np.arange(layers, 2 * layers), values)
    return replace(attention_columns(np.zeros((steps, 3 * layers))), previous_token_weight=previous)


def from_probability(probability: Any) -> LogitColumns:
    return logit_columns(surprisal=-np.log2(np.asarray(probability, dtype=np.float64)))


def by_the_paper(probability: list[float], weight: list[list[list[float]]], alpha: float) -> float:
    """Algorithm 1 of arXiv:2505.20045, token by token; ``weight`` by token, layer and head."""
    n = len(probability)
    scores = []
    for layer in range(len(weight[0])):
        heads = range(len(weight[0][layer]))
        head = max(heads, key=lambda h: sum(weight[i][layer][h] for i in range(1, n)))
        confidence = [probability[0]]
        for i in range(1, n):
            handed_on = weight[i][layer][head] * confidence[i - 1]
            confidence.append(alpha * probability[i] + (1 - alpha) * handed_on)
        scores.append(-sum(math.log(c) for c in confidence) / n)
    return max(scores)


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 9, 300])
@pytest.mark.parametrize("alpha", [ALPHA, 0.5, 1.0])
def test_is_the_papers_algorithm_in_bits(steps: int, alpha: float) -> None:
    rng = np.random.default_rng(steps)
    probability = rng.uniform(1e-4, 1.0, steps)
    weight = rng.beta(0.5, 2.0, (steps, 5, 4))

    found = rauq(from_probability(probability), with_weight(weight), alpha)

    nats = by_the_paper(probability.tolist(), weight.tolist(), alpha)
    assert found * math.log(2) == pytest.approx(nats, rel=1e-5)


def test_two_tokens_by_hand() -> None:
    logits = from_probability([0.5, 0.25])
    weight = [[[0.9, 0.9]], [[0.1, 0.75]]]  # the second head looks back more

    # c = 1/2, then 0.2 x 1/4 + 0.8 x 3/4 x 1/2 = 0.35
    assert rauq(logits, with_weight(weight)) == pytest.approx(-math.log2(0.5 * 0.35) / 2, rel=1e-6)


def test_with_nothing_but_its_own_probability_it_is_the_mean_surprisal() -> None:
    logits = logit_columns(surprisal=[1.0, 2.0, 6.0])

    assert rauq(logits, with_weight(np.full((3, 2, 2), 0.5)), alpha=1.0) == pytest.approx(3.0)


def test_a_head_that_stops_looking_back_raises_it() -> None:
    logits = from_probability([0.9] * 6)
    steady = np.full((6, 1, 2), 0.8)
    dropping = steady.copy()
    dropping[3] = 0.1

    assert rauq(logits, with_weight(dropping)) > rauq(logits, with_weight(steady)) + 0.1


def test_the_worst_layer_decides() -> None:
    logits = from_probability([0.9] * 6)
    layers = [np.full((6, 1, 2), weight) for weight in (0.7, 0.2, 0.9)]
    alone = [rauq(logits, with_weight(weight)) for weight in layers]

    assert rauq(logits, with_weight(np.concatenate(layers, axis=1))) == max(alone) == alone[1]


def test_what_the_first_token_looks_at_belongs_to_the_prompt() -> None:
    logits = from_probability([0.9, 0.8, 0.7])
    weight = np.full((3, 2, 2), 0.5)
    other = weight.copy()
    other[0] = [[np.nan, 1.0], [0.0, 0.3]]

    assert rauq(logits, with_weight(other)) == rauq(logits, with_weight(weight))


def test_heads_and_layers_with_a_gap_do_not_count() -> None:
    logits = from_probability([0.9, 0.8, 0.7])
    full = np.full((3, 1, 1), 0.5)
    gap = np.full((3, 2, 2), 0.9)
    gap[:, 0, 0] = 0.5
    gap[1, 0, 1] = gap[2, 1, :] = np.nan

    assert rauq(logits, with_weight(gap)) == rauq(logits, with_weight(full))
    assert math.isnan(rauq(logits, with_weight(gap[:, 1:])))


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_every_probability_must_be_known(broken: float) -> None:
    logits = logit_columns(surprisal=[1.0, broken, 1.0])

    assert math.isnan(rauq(logits, with_weight(np.full((3, 1, 1), 0.5))))


@pytest.mark.parametrize("shape", [(0, 2, 2), (3, 0, 2), (3, 2, 0)])
def test_without_weights_there_is_none(shape: tuple[int, ...]) -> None:
    logits = logit_columns(surprisal=np.ones(shape[0]))

    assert math.isnan(rauq(logits, with_weight(np.zeros(shape))))
    assert math.isnan(rauq(logits, attention_columns(np.zeros((shape[0], 4)))))
    assert math.isnan(rauq(logits, None))
    assert math.isnan(rauq(None, with_weight(np.zeros(shape))))


@st.composite
def hostile(draw: st.DrawFn) -> tuple[LogitColumns, Floats]:
    steps, layers, heads = (draw(st.integers(0, most)) for most in (12, 4, 3))
    surprisal = draw(
        arrays.arrays(np.float32, steps, elements=HOSTILE | st.floats(0, 20, width=32))
    )
    shape = (steps, layers, heads)
    weight = draw(arrays.arrays(np.float32, shape, elements=HOSTILE | st.floats(0, 1, width=32)))
    return logit_columns(surprisal=surprisal), weight


@given(hostile(), st.floats(0.01, 1.0))
def test_is_bounded_or_unknown(given_: tuple[LogitColumns, Floats], alpha: float) -> None:
    logits, weight = given_
    with np.errstate(all="raise"):
        found = rauq(logits, with_weight(weight), alpha)

    assert math.isnan(found) or 0.0 <= found <= MOST_BITS


@given(
    arrays.arrays(np.float32, (9, 3), elements=st.floats(0, 1, width=32)),
    arrays.arrays(np.float32, 9, elements=st.floats(0, 30, width=32)),
    st.booleans(),
)
def test_is_the_papers_algorithm_on_any_weights(
    weight: Floats, surprisal: Floats, strongest_first: bool
) -> None:
    # One head is half of the other backwards: their means tie at zero only.
    half = np.concatenate((weight[:1], weight[:0:-1] / 2))
    both = np.stack((weight, half) if strongest_first else (half, weight), axis=-1)
    probability = np.exp2(-surprisal.astype(np.float64)).tolist()

    nats = by_the_paper(probability, both.tolist(), ALPHA)
    found = rauq(logit_columns(surprisal=surprisal), with_weight(both))

    assert found * math.log(2) == pytest.approx(nats, rel=1e-5, abs=1e-6)
