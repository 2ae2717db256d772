"""What a run holds grows by its record only."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.memory import array_bytes
from tests.capture.observe import observing
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.telemetry.generating import AfterStep

EARLY, LATE = 63, 383
"""A multiple of the steps that are reduced together lies between them."""


def tensor_bytes() -> int:
    """Bytes of all plain tensors that are alive, each memory once."""
    gc.collect()
    tensors: list[torch.Tensor] = [each for each in gc.get_objects() if type(each) is torch.Tensor]
    storages = [each.untyped_storage() for each in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def growth(model: GenerativeModel) -> int:
    """Bytes by which tensors grow between the two steps."""
    held: list[int] = []

    def note() -> None:
        held.append(tensor_bytes())

    criteria: list[Callable[..., Any]] = [AfterStep(EARLY, note), AfterStep(LATE, note)]
    length = {"max_new_tokens": LATE + 8, "min_new_tokens": LATE + 8, "do_sample": False}
    model.generate(tiny_prompt(), **length, stopping_criteria=criteria)
    early, late = held
    return late - early


def test_each_token_keeps_its_share_of_the_record() -> None:
    model = tiny_model("llama")
    plain = growth(model)
    with observing() as records:
        added = growth(model) - plain
    share = array_bytes(records[0]) / records[0].steps
    assert added / (LATE - EARLY) < 1.2 * share
