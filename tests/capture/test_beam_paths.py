"""Returned sequences are followed from prefix to prefix."""

from __future__ import annotations

import torch

from corevital.capture.beam_paths import BeamPaths
from corevital.capture.prefix_hash import prefix_hashes

FILL = 9


def hashes(prefixes: list[list[list[int]]]) -> torch.Tensor:
    """Hashes ``[groups, n]`` of prefixes of one length."""
    return prefix_hashes(torch.tensor(prefixes, dtype=torch.int64))[..., -1]


# Two prompts with two beams each and three steps. The first prompt's sequence ends after two.
ROWS = torch.stack(
    [
        hashes([[[], []], [[], []]]),
        hashes([[[1], [2]], [[3], [4]]]),
        hashes([[[2, 6], [1, 5]], [[4, 7], [4, 8]]]),
    ]
)
CANDIDATES = torch.stack(
    [
        hashes([[[1], [2], [0]], [[3], [4], [0]]]),
        hashes([[[2, 5], [2, 6], [1, 5]], [[4, 7], [4, 8], [3, 3]]]),
        hashes([[[2, 6, 1], [1, 5, 1], [1, 5, 2]], [[4, 8, 1], [4, 7, 2], [4, 7, 3]]]),
    ]
)


def test_each_token_comes_of_the_row_with_the_tokens_before_it() -> None:
    paths = BeamPaths.of(torch.tensor([[2, 5, FILL], [4, 7, 2]]), ROWS, CANDIDATES)
    assert paths.groups.tolist() == [0, 1]
    assert paths.steps.tolist() == [2, 3]
    assert paths.rows[0, :2].tolist() == [0, 1]
    assert paths.rows[1].tolist() == [2, 3, 2]
    assert paths.candidates[0, :2].tolist() == [1, 0]
    assert paths.candidates[1].tolist() == [1, 0, 1]
    assert paths.tied.tolist() == [True, True]


def test_several_sequences_of_a_prompt_lie_next_to_each_other() -> None:
    returned = torch.tensor([[2, 6, 1], [1, 5, 2], [4, 8, 1], [4, 7, 2]])
    paths = BeamPaths.of(returned, ROWS, CANDIDATES)
    assert paths.groups.tolist() == [0, 0, 1, 1]
    assert paths.steps.tolist() == [3, 3, 3, 3]
    assert paths.rows[:, 2].tolist() == [0, 1, 3, 2]


def test_a_sequence_of_another_group_or_with_an_unknown_token_is_not_tied() -> None:
    returned = torch.tensor([[4, 7, 2], [1, 5, 3], [4, 7, 8], [3, 3, 3]])
    paths = BeamPaths.of(returned, ROWS, CANDIDATES)
    assert paths.tied.tolist() == [False, True, True, True]
    assert paths.steps.tolist() == [0, 2, 2, 2]
