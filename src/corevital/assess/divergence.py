"""How far a run is from what is normal for its model."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Direction(StrEnum):
    """How a distribution differs from the baseline's."""

    HIGHER = "higher"
    LOWER = "lower"
    WIDER = "wider"
    NARROWER = "narrower"


@dataclass(frozen=True, slots=True)
class Anomaly:
    """A quantity that is further from the baseline than in healthy runs.

    ``layers`` are consecutive and zero-based, empty where the quantity has none; ``worst_layer`` is
    the one that is furthest off. ``distance`` is above 1, the limit of healthy runs.
    ``description`` says it in words, with the numbers.
    """

    quantity: str
    layers: tuple[int, ...]
    worst_layer: int | None
    direction: Direction
    distance: float
    description: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """What a comparison with a baseline gave; ``baseline`` is its id.

    ``score`` in [0, 1] is 0.5 at the limit of healthy runs; ``None`` when nothing that the baseline
    knows was observed. ``anomalies`` are the worst first, and not all of a broken run's.
    ``more_collapsed_heads``: more heads of some layer collapsed than in healthy runs.
    """

    baseline: str
    score: float | None
    anomalies: tuple[Anomaly, ...] = ()
    more_collapsed_heads: bool = False
