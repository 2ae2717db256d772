"""A series of numbers as a line of block characters, one for each number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII_BLOCKS: Final = "_.:-=+*#"
NOT_FINITE: Final = "!"


def mark(value: float, top: float, blocks: str = BLOCKS) -> str:
    """The block whose height is ``value`` on a scale from 0 to ``top``, which is above 0.

    A value that is not finite has a mark of its own; one outside the scale is drawn at its end.
    """
    if not math.isfinite(value):
        return NOT_FINITE
    height = int(value / top * len(blocks))
    return blocks[min(max(height, 0), len(blocks) - 1)]


def condensed(values: Sequence[float], most: int) -> tuple[list[float], int]:
    """At most ``most`` values, each the largest of as many consecutive ones as are also returned.

    NaN and Inf outrank every number: what is wrong must not disappear among its neighbours.
    """
    size = max(1, math.ceil(len(values) / most))
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [max(group, key=_rank) for group in groups], size


def _rank(value: float) -> float:
    return value if math.isfinite(value) else math.inf
