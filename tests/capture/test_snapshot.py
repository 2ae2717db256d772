"""What has been brought to the host is brought there once, and kept as long as it is asked for."""

from __future__ import annotations

import weakref

import torch

from corevital.capture.chunk import Chunk
from corevital.capture.layers import find_decoder_layers
from corevital.capture.plan import CapturePlan
from corevital.capture.run import GenerationRun
from corevital.capture.snapshot import HostCopies, Snapshot
from corevital.record import CaptureMode
from tests.models import tiny_model


def test_a_tensor_is_copied_once() -> None:
    copies, tensor = HostCopies(), torch.ones(3)
    copy = copies.of(tensor)
    assert torch.equal(copy.tensor, tensor)
    assert copies.of(tensor) is copy
    copies.forget_unused()
    assert copies.of(tensor) is copy


def test_what_is_not_asked_for_any_more_is_let_go() -> None:
    copies, kept, joined = HostCopies(), torch.ones(3), torch.ones(3)
    gone = weakref.ref(joined)
    copies.of(kept)
    copies.of(joined)
    copies.forget_unused()
    del joined
    assert gone() is not None
    copy = copies.of(kept)
    copies.forget_unused()
    assert gone() is None
    assert copies.of(kept) is copy


def test_a_later_snapshot_lets_go_of_what_is_part_of_another_tensor() -> None:
    model, copies = tiny_model("llama"), HostCopies()
    run = GenerationRun(model, find_decoder_layers(model), CapturePlan(CaptureMode.FULL))
    run.attention.chunks = [Chunk((step,), (0,), torch.ones(8, 1, 1, 1)) for step in range(2)]
    gone = weakref.ref(run.attention.chunks[0].statistics)
    Snapshot(run, copies, layers=True)
    run.attention.chunks = [Chunk((0, 1), (0,), torch.ones(8, 2, 1, 1))]
    assert gone() is not None
    Snapshot(run, copies, layers=True)
    assert gone() is None
