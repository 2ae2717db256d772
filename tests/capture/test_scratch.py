"""Memory that is used again."""

from __future__ import annotations

import torch

from corevital.capture.chunk import bytes_together
from corevital.capture.scratch import Scratch

CPU = torch.device("cpu")


def test_the_same_memory_serves_tensors_of_every_shape() -> None:
    scratch = Scratch()
    first = scratch.tensor((2, 3), torch.float32, CPU)
    second = scratch.tensor((4, 5, 6), torch.float32, CPU)
    assert second.shape == (4, 5, 6)
    assert second.is_contiguous()
    assert second.data_ptr() == first.data_ptr()


def test_another_type_has_memory_of_its_own() -> None:
    scratch = Scratch()
    numbers = scratch.tensor((3,), torch.float32, CPU).fill_(1.0)
    halves = scratch.tensor((3,), torch.bfloat16, CPU).fill_(2.0)
    assert halves.dtype == torch.bfloat16
    assert numbers.tolist() == [1.0, 1.0, 1.0]


def test_a_tensor_beyond_what_is_reduced_at_once_has_room() -> None:
    scratch = Scratch()
    size = bytes_together(CPU) // 4 + 1
    assert scratch.tensor((2,), torch.float32, CPU).shape == (2,)
    assert scratch.tensor((size,), torch.float32, CPU).fill_(1.0).sum() == size


def test_memory_made_in_inference_mode_can_be_written_to_afterwards() -> None:
    scratch = Scratch()
    with torch.inference_mode():
        scratch.tensor((3,), torch.float32, CPU).fill_(1.0)
    assert scratch.tensor((3,), torch.float32, CPU).fill_(2.0).tolist() == [2.0, 2.0, 2.0]
