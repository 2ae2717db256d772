"""Whether two results are the same, bit for bit, and what of them is not."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from tests.zoo.modes import MODES, Subject


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call returned, or the type and message of what it raised; the random state after."""

    result: Any
    error: tuple[str, str] | None
    random_state: Tensor


def outcome(mode: str, subject: Subject) -> Outcome:
    """Run one mode, always from the same random state."""
    result, error = None, None
    with torch.random.fork_rng():
        torch.manual_seed(0)
        try:
            result = MODES[mode](subject)
        except Exception as raised:
            # Addresses differ from object to object.
            message = re.sub(r"0x[0-9a-f]+", "0x", str(raised))
            error = (type(raised).__qualname__, message)
        return Outcome(result, error, torch.random.get_rng_state())


def difference(left: Any, right: Any, place: str = "result") -> str | None:
    """Where two results differ and how, ``None`` when they do not.

    Tensors are equal when type, shape and every element are; NaN equals NaN. Caches are compared by
    what they hold.
    """
    if type(left) is not type(right):
        return f"{place}: {type(left).__name__} and {type(right).__name__}"
    if isinstance(left, Tensor):
        return _tensor_difference(left, right, place)
    if isinstance(left, Mapping):
        if list(left) != list(right):
            return f"{place}: {list(left)} and {list(right)}"
        return _first(left, right, [(f"{place}.{name}", name) for name in left])
    if isinstance(left, list | tuple):
        if len(left) != len(right):
            return f"{place}: {len(left)} and {len(right)} elements"
        return _first(left, right, [(f"{place}[{at}]", at) for at in range(len(left))])
    if isinstance(left, Cache) or type(left).__module__.startswith("transformers."):
        return difference(vars(left), vars(right), place)
    if isinstance(left, Outcome):
        return (
            difference(left.error, right.error, "exception")
            or difference(left.result, right.result)
            or difference(left.random_state, right.random_state, "random state")
        )
    if isinstance(left, str | int | float | bool | None | type | torch.dtype | torch.device):
        return None if left == right else f"{place}: {left!r} and {right!r}"
    return None if left is right else f"{place}: cannot compare {type(left).__name__}"


def _first(left: Any, right: Any, parts: list[tuple[str, Any]]) -> str | None:
    differences = (difference(left[key], right[key], place) for place, key in parts)
    return next((found for found in differences if found is not None), None)


def _tensor_difference(left: Tensor, right: Tensor, place: str) -> str | None:
    if left.dtype != right.dtype or left.shape != right.shape:
        return f"{place}: {left.dtype} {list(left.shape)} and {right.dtype} {list(right.shape)}"
    if torch.equal(left, right):
        return None
    same = (left == right) | ((left != left) & (right != right))
    if bool(same.all()):
        return None
    return f"{place}: {int((~same).sum())} of {left.numel()} elements"
