"""Failures as one line."""

from __future__ import annotations

import pytest

from corevital.cli.errors import FAILURE, USAGE, CommandError, command_error


def test_a_failure_that_was_worded_for_the_user_stays_as_it_is() -> None:
    failure = CommandError("no such thing", USAGE)

    assert command_error(failure) is failure


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_used_up_memory_is_recognised_in_its_many_forms(error: Exception) -> None:
    failure = command_error(error)

    assert failure.status == FAILURE
    assert str(failure).startswith("not enough memory (")


def test_used_up_memory_is_recognised_behind_another_failure() -> None:
    error = ValueError("cannot read the weights")
    error.__cause__ = MemoryError()

    assert "not enough memory" in str(command_error(error))


def test_an_unforeseen_failure_is_one_line_and_says_how_to_learn_more() -> None:
    failure = command_error(ValueError("\nfirst line.\nsecond line"))

    assert str(failure) == "ValueError: first line (--debug shows where)"
    assert failure.status == FAILURE
