"""Sequence estimators come from the recorded columns alone, and say so where these are missing."""

from __future__ import annotations

import math
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corevital.assess.uncertainty import Uncertainty, uncertainty
from corevital.record import Floats
from tests.assess.records import attention_columns, logit_columns, record
from tests.assess.test_rauq import from_probability, with_weight

HOSTILE = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf])


def test_likelihood_is_that_of_the_whole_sequence() -> None:
    probabilities = [0.5, 0.25, 0.9, 0.01]

    found = uncertainty(record(logits=from_probability(probabilities)))

    likelihood = math.prod(probabilities)
    assert found.negative_log_likelihood == pytest.approx(-math.log2(likelihood), rel=1e-6)
    perplexity = likelihood ** (-1 / len(probabilities))
    assert 2**found.negative_log_likelihood_per_token == pytest.approx(perplexity, rel=1e-6)


def test_entropy_and_margin_are_those_of_the_observed_steps() -> None:
    logits = logit_columns(
        surprisal=np.ones(4), entropy=[1.0, np.nan, 4.0, 1.0], margin=[0.5, 0.25, np.nan, 0.75]
    )

    found = uncertainty(record(logits=logits))

    assert (found.mean_entropy, found.max_entropy) == (2.0, 4.0)
    assert found.mean_margin == 0.5
    assert found.negative_log_likelihood == 4.0


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_there_is_no_likelihood_without_that_of_every_token(broken: float) -> None:
    found = uncertainty(record(logits=logit_columns(surprisal=[1.0, broken], entropy=[1.0, 2.0])))

    assert math.isnan(found.negative_log_likelihood)
    assert math.isnan(found.negative_log_likelihood_per_token)
    assert found.mean_entropy == 1.5


def test_attention_adds_rauq() -> None:
    logits = from_probability([0.5, 0.25])
    weight = with_weight(np.full((2, 1, 1), 0.75))

    assert uncertainty(record(logits=logits, attention=weight)).rauq == pytest.approx(
        -math.log2(0.5 * 0.35) / 2, rel=1e-6
    )
    unweighed = attention_columns(np.zeros((2, 3)))
    assert math.isnan(uncertainty(record(logits=logits, attention=unweighed)).rauq)


def test_nothing_is_known_without_logits_or_tokens() -> None:
    unknown = uncertainty(record(attention=with_weight(np.full((2, 1, 1), 0.75))))

    assert all(map(math.isnan, astuple(unknown)))
    assert uncertainty(record(logits=logit_columns(surprisal=[]))) == unknown == Uncertainty()


def hostile(steps: int) -> st.SearchStrategy[Floats]:
    return arrays.arrays(np.float32, steps, elements=HOSTILE)


@given(st.data(), st.integers(0, 9))
def test_is_within_what_was_recorded_or_unknown(data: st.DataObject, steps: int) -> None:
    surprisal, entropy, margin = (data.draw(hostile(steps)) for _ in range(3))
    logits = logit_columns(surprisal=surprisal, entropy=entropy, margin=margin)
    with np.errstate(all="raise"):
        found = uncertainty(record(logits=logits))

    for value, column in (
        (found.negative_log_likelihood_per_token, surprisal),
        (found.mean_entropy, entropy),
        (found.max_entropy, entropy),
        (found.mean_margin, margin),
    ):
        seen = column[np.isfinite(column)].astype(np.float64)
        slack = 1e-9 * np.abs(seen).max(initial=0.0)
        assert math.isnan(value) or seen.min() - slack <= value <= seen.max() + slack
    assert not math.isinf(found.negative_log_likelihood)
