"""What has been brought to the host is brought there once, and kept as long as it is asked for."""

from __future__ import annotations

import weakref

import torch

from corevital.capture.snapshot import HostCopies


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
