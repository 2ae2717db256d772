"""Chunks of few steps become one, with the same numbers at the same steps."""

from __future__ import annotations

import pytest
import torch

from corevital.capture.attention import AttentionCall, AttentionReducer
from corevital.capture.chunk import MOST_STEPS, Chunk, join_newest

LAYERS = (0, 1)


def chunk(first: int, count: int, positions: tuple[int, ...] = LAYERS, rows: int = 3) -> Chunk:
    """``count`` steps from ``first`` on, whose statistics are the step's number."""
    steps = tuple(range(first, first + count))
    numbers = torch.tensor(steps, dtype=torch.float32)[None, :, None, None]
    return Chunk(steps, positions, numbers.expand(8, -1, len(positions), rows).clone())


def added(chunks: list[Chunk]) -> list[Chunk]:
    """The same, one after another."""
    kept: list[Chunk] = []
    for each in chunks:
        kept.append(each)
        join_newest(kept)
    return kept


def numbers(chunks: list[Chunk], positions: tuple[int, ...]) -> dict[int, float]:
    """What is said of each step."""
    found = {}
    for each in chunks:
        if each.positions == positions:
            for place, step in enumerate(each.steps):
                (found[step],) = each.statistics[:, place].unique().tolist()
    return found


@pytest.mark.parametrize("count", [1, 3, 5, MOST_STEPS - 1])
def test_few_steps_at_a_time_become_few_tensors(count: int) -> None:
    steps = 10 * MOST_STEPS
    kept = added([chunk(first, count) for first in range(0, steps, count)])
    assert len(kept) <= 10 + MOST_STEPS // count
    expected = {step: float(step) for each in kept for step in each.steps}
    assert numbers(kept, LAYERS) == expected
    assert set(range(steps)) <= set(expected)


def test_layers_that_are_reduced_apart_stay_apart() -> None:
    others = (5,)
    kept = added([chunk(step, 1, which) for step in range(100) for which in (LAYERS, others)])
    assert len(kept) <= 2 * (100 // MOST_STEPS + MOST_STEPS)
    for positions in (LAYERS, others):
        assert numbers(kept, positions) == {step: float(step) for step in range(100)}


def test_as_many_steps_as_are_reduced_together_stay_as_they_are() -> None:
    chunks = [chunk(0, MOST_STEPS), chunk(MOST_STEPS, MOST_STEPS)]
    assert added(chunks) == chunks


def test_another_number_of_sequences_is_not_joined() -> None:
    chunks = [chunk(step, 1, rows=2 if step < 20 else 3) for step in range(40)]
    assert added(chunks) == chunks


@pytest.mark.parametrize("undecided", [False, True])
def test_what_is_reduced_at_every_step_leaves_few_tensors(*, undecided: bool) -> None:
    """As beams are, and tokens that are tried."""
    reducer = AttentionReducer(weight_layers=range(1))
    steps, rows = 4 * MOST_STEPS, torch.tensor([1])
    for step in range(steps):
        reducer.begin_step(append_only=False, undecided=undecided)
        query, key = torch.randn(2, 4, 1, 8), torch.randn(2, 2, 6 + step, 8)
        reducer.observe(AttentionCall(0, query, key, None, None, {}))
        reducer.end_step(step)
        if undecided:
            reducer.choose_rows(rows)
    for chunks in (reducer.chunks, reducer.previous_token):
        assert [step for each in chunks for step in each.steps] == list(range(steps))
        assert len(chunks) == 4
        assert chunks[0].statistics.shape[3] == (1 if undecided else 2)
