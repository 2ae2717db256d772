"""Of the rows in which a sequence's tokens are tried, one counts."""

from __future__ import annotations

import pytest
import torch

from corevital.capture.trial import Trial

TRIED = torch.tensor([[5], [6], [7], [6], [5], [8]])
"""Three tokens of each of two sequences."""


@pytest.fixture
def trial() -> Trial:
    return Trial(TRIED, sequences=2)


def test_the_row_of_a_sequence_is_the_one_that_tried_its_token(trial: Trial) -> None:
    for tokens, rows in (([5, 5], [0, 4]), ([7, 6], [2, 3]), ([6, 8], [1, 5])):
        assert trial.rows_of(torch.tensor(tokens).view(2, 1)).tolist() == rows


def test_a_token_that_another_sequence_tried_has_no_row(trial: Trial) -> None:
    tokens = torch.tensor([[8], [7]])
    assert trial.tokens_of(trial.rows_of(tokens)).tolist() == [[5], [6]]


def test_of_the_same_token_tried_twice_either_row_will_do() -> None:
    trial = Trial(torch.tensor([[4], [9], [9]]), sequences=1)
    assert trial.rows_of(torch.tensor([[9]])).tolist() == [1]


def test_what_was_seen_of_the_rows_that_count(trial: Trial) -> None:
    trial.logits = torch.arange(12.0).view(6, 1, 2)
    trial.states = {3: torch.arange(6.0).view(6, 1, 1)}
    rows = torch.tensor([1, 5])
    assert trial.logits_of(rows).tolist() == [[[2, 3]], [[10, 11]]]
    assert trial.states_of(rows)[3].flatten().tolist() == [1, 5]
    assert trial.tokens_of(rows).tolist() == [[6], [8]]
