"""What steps leave is copied as it is, whatever it is and however."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from corevital.capture import step_rows
from corevital.capture.scratch import Scratch
from corevital.capture.step_rows import StepRows

ROWS = torch.tensor([[[math.nan, math.inf, -math.inf, 2.0]], [[0.0, -1.0, 5.0, 1e30]]])


class Operations(TorchDispatchMode):
    """Counts what torch is asked to compute."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_each_step_has_the_rows_of_its_tensors_behind_one_another() -> None:
    steps = [[torch.randn(2, 1, 8) for _ in range(3)] for _ in range(4)]
    held = StepRows(Scratch(), 4, steps[0], torch.float32)
    for place, tensors in enumerate(steps):
        held.put(place, tensors)
    assert len(held) == 4
    assert torch.equal(held.rows, torch.stack([torch.cat(tensors) for tensors in steps]))


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_written_over_later_stays_as_it_was(count: int) -> None:
    """As a compiled forward pass writes over what it returned before."""
    tensors = [torch.ones(2, 4) for _ in range(count)]
    held = StepRows(Scratch(), 1, tensors, torch.float32)
    held.put(0, tensors)
    for tensor in tensors:
        tensor.zero_()
    assert (held.rows == 1.0).all()


@pytest.mark.parametrize("given", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [1, 3])
def test_another_precision_is_converted(count: int, given: torch.dtype) -> None:
    tensors = [torch.randn(2, 4).to(given) for _ in range(count)]
    held = StepRows(Scratch(), 2, tensors, torch.float32)
    held.put(1, tensors)
    torch.testing.assert_close(held.rows[1], torch.cat(tensors).float(), rtol=0, atol=0)


def test_one_of_several_may_be_of_another_precision() -> None:
    tensors = [torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4)]
    held = StepRows(Scratch(), 1, tensors, torch.float32)
    held.put(0, tensors)
    assert torch.equal(held.rows[0], torch.cat([tensor.float() for tensor in tensors]))


@pytest.mark.parametrize("given", [torch.float32, torch.bfloat16])
def test_more_tensors_do_not_take_more_operations(given: torch.dtype) -> None:
    """Each of them is a launch on an accelerator."""
    counts = []
    for count in (3, 30):
        tensors = [torch.randn(2, 4).to(given) for _ in range(count)]
        held = StepRows(Scratch(), 1, tensors, torch.float32)
        with Operations() as operations:
            held.put(0, tensors)
        counts.append(operations.count)
    assert counts[0] == counts[1] > 0


def test_rows_of_another_size_are_no_step_of_these() -> None:
    held = StepRows(Scratch(), 2, [torch.zeros(2, 4)], torch.float32)
    held.rows.zero_()
    for width in (3, 5):
        with pytest.raises(ValueError, match="different structures"):
            held.put(0, [torch.ones(2, width)])
    assert not held.rows.any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_what_is_to_stay_in_its_precision_does(dtype: torch.dtype) -> None:
    tensors = [torch.randn(2, 4).to(dtype)]
    held = StepRows(Scratch(), 1, tensors, dtype)
    held.put(0, tensors)
    assert held.rows.dtype == dtype
    assert torch.equal(held.rows[0], tensors[0])


@pytest.mark.parametrize(("few", "by_torch"), [(0, 3), (100, 2)])
def test_few_numbers_and_many_are_copied_alike(
    few: int, by_torch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few of them without torch, where nothing lies between them."""
    monkeypatch.setattr(step_rows, "_FEW", few)
    copied: list[Tensor] = []
    copy = Tensor.copy_

    def noted(held: Tensor, given: Tensor, *, non_blocking: bool) -> Tensor:
        copied.append(given)
        return copy(held, given, non_blocking=non_blocking)

    monkeypatch.setattr(Tensor, "copy_", noted)
    held = StepRows(Scratch(), 3, [ROWS], torch.float32)
    held.put(0, [ROWS])
    held.put(1, [torch.stack((ROWS, torch.zeros(2, 1, 4)), dim=-1)[..., 0]])
    held.put(2, [ROWS.double()])
    for rows in held.rows:
        torch.testing.assert_close(rows, ROWS, rtol=0, atol=0, equal_nan=True)
    assert len(copied) == by_torch


def test_a_tensor_of_another_class_is_copied_by_its_own_rules() -> None:
    class Unreadable(Tensor):
        def numpy(self, **_: Any) -> Any:
            raise AssertionError("its memory is none of ours")

    held = StepRows(Scratch(), 1, [ROWS], torch.float32)
    held.put(0, [ROWS.as_subclass(Unreadable)])
    torch.testing.assert_close(held.rows[0], ROWS, rtol=0, atol=0, equal_nan=True)


def test_tensors_of_several_devices_come_to_that_of_the_last() -> None:
    tensors = [torch.zeros(2, 4), torch.zeros(2, 4), torch.zeros(2, 4, device="meta")]
    held = StepRows(Scratch(), 1, tensors, torch.float32)
    held.put(0, tensors)
    assert held.rows.device.type == "meta"


def test_more_steps_have_the_memory_of_those_before() -> None:
    memory = Scratch()
    first = StepRows(memory, 2, [ROWS], torch.float32)
    first.put(1, [ROWS])
    second = StepRows(memory, 2, [ROWS], torch.float32)
    assert second.rows.data_ptr() == first.rows.data_ptr()
