"""Memory of a run that the next run takes over."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from corevital.capture import run_memory
from corevital.capture.chunk import BUFFER_BYTES
from corevital.capture.run_memory import RunMemory
from tests.capture.observe import observe, observing
from tests.models import tiny_model, tiny_prompt

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def none_to_spare() -> Iterator[None]:
    kept = list(run_memory._spare)
    run_memory._spare.clear()
    yield
    run_memory._spare[:] = kept


def filled(memory: RunMemory, *sizes: int) -> list[int]:
    """Where steps of so many numbers wait."""
    places = [memory.for_steps().tensor((size,), torch.float32, CPU) for size in sizes]
    return [place.data_ptr() for place in places]


def test_the_next_run_has_the_memory_of_the_last() -> None:
    memory = RunMemory.take()
    first = filled(memory, 10, 20)
    memory.give_back()
    assert filled(RunMemory.take(), 10, 20) == first


def test_what_waits_at_the_same_time_has_memory_of_its_own() -> None:
    first, second = filled(RunMemory.take(), 10, 10)
    assert first != second


def test_runs_at_the_same_time_have_memory_of_their_own_and_one_is_kept() -> None:
    one, other = RunMemory.take(), RunMemory.take()
    assert not set(filled(one, 10)) & set(filled(other, 10))
    one.give_back()
    other.give_back()
    assert run_memory._spare == [one]


@pytest.mark.parametrize("larger_first", [True, False])
def test_of_runs_at_the_same_time_the_largest_memory_is_kept(larger_first: bool) -> None:
    larger, smaller = RunMemory.take(), RunMemory.take()
    filled(larger, 10, BUFFER_BYTES // 4)
    filled(smaller, 10)
    for memory in (larger, smaller) if larger_first else (smaller, larger):
        memory.give_back()
    assert run_memory._spare == [larger]


def test_large_pieces_and_those_of_an_accelerator_are_not_kept() -> None:
    memory = RunMemory.take()
    (small,) = filled(memory, 10)
    filled(memory, BUFFER_BYTES // 4 + 1)
    memory.for_steps().tensor((10,), torch.float32, torch.device("meta"))
    memory.give_back()
    kept = [scratch._memory for scratch in RunMemory.take()._for_steps]
    assert [each is None for each in kept] == [False, True, True]
    assert kept[0] is not None
    assert kept[0].data_ptr() == small


def test_what_is_kept_is_bounded() -> None:
    memory = RunMemory.take()
    filled(memory, *[10] * 9)
    memory.give_back()
    assert len(RunMemory.take()._for_steps) == 4


def test_a_record_stays_what_it_was_when_the_next_run_writes() -> None:
    model = tiny_model("llama")
    arguments = {"max_new_tokens": 20, "do_sample": False}
    with observing() as records:
        model.generate(tiny_prompt(), **arguments)
        (record,), (memory,) = records, run_memory._spare
        assert record.logits is not None
        assert record.hidden is not None
        assert record.attention is not None
        columns = (record.logits.entropy, record.hidden.l2_norm, record.attention.entropy_mean)
        before = [column.copy() for column in columns]
        model.generate(tiny_prompt(tokens=30), **arguments)
        assert run_memory._spare == [memory]
    assert all(np.array_equal(a, b) for a, b in zip(columns, before, strict=True))


def test_nothing_is_kept_once_uninstrumented() -> None:
    with observing():
        tiny_model("llama").generate(tiny_prompt(), max_new_tokens=3, do_sample=False)
        assert run_memory._spare
    assert not run_memory._spare


def test_a_generation_inside_another_has_memory_of_its_own() -> None:
    model = tiny_model("llama")
    arguments = {"max_new_tokens": 12, "do_sample": False}
    _, (alone,) = observe(model, inputs=tiny_prompt(), **arguments)

    def inner(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape == (1, tiny_prompt().shape[1] + 5):
            model.generate(tiny_prompt(tokens=30), **arguments)
        return scores

    _, records = observe(model, inputs=tiny_prompt(), logits_processor=[inner], **arguments)
    assert len(records) == 2
    outer = records[-1]
    assert outer.logits is not None
    assert alone.logits is not None
    np.testing.assert_array_equal(outer.token_ids, alone.token_ids)
    np.testing.assert_allclose(outer.logits.entropy, alone.logits.entropy, rtol=1e-5)
