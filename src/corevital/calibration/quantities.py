"""The quantities of a run that a baseline knows, and one run reduced to them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from corevital.calibration import sketch
from corevital.calibration.sketch import Buckets, Values
from corevital.record import GenerationRecord

ENTROPY: Final = "entropy"
MARGIN: Final = "margin"
SURPRISAL: Final = "surprisal"
L2_NORM: Final = "hidden.l2_norm"
ATTENTION_ENTROPY: Final = "attention.entropy"
COLLAPSED_HEADS: Final = "attention.collapsed_heads"


@dataclass(frozen=True, slots=True)
class Quantity:
    """A quantity that has a value at every step, or at every step and layer.

    Values are compared on ``scale``, by their differences unless it is logarithmic. ``tolerance``,
    on that scale, is too small a difference to mean anything, however steady the quantity was.
    ``grain`` is the smallest difference that there is at one step: a single one of them means
    nothing either.
    """

    name: str
    words: str
    tolerance: float
    grain: float = 0.0
    scale: Values = field(default_factory=lambda: sketch.VALUES)


QUANTITIES: Final = {
    quantity.name: quantity
    for quantity in (
        Quantity(ENTROPY, "entropy", tolerance=0.05),
        Quantity(MARGIN, "margin", tolerance=0.01),
        Quantity(SURPRISAL, "surprisal", tolerance=0.05),
        # Of norms ratios matter, and a layer that falls silent is as far off as one that explodes.
        Quantity(L2_NORM, "L2 norm", tolerance=0.03, scale=sketch.DOUBLINGS),
        # Normalised: entropy in bits grows with the number of tokens that can be looked at.
        Quantity(ATTENTION_ENTROPY, "normalised attention entropy", tolerance=0.005),
        Quantity(COLLAPSED_HEADS, "number of collapsed heads", tolerance=0.1, grain=1.0),
    )
}


class Key(NamedTuple):
    """A quantity, and the zero-based layer where it has one."""

    quantity: str
    layer: int | None = None


def scales(keys: Sequence[Key]) -> Values:
    """The scales on which quantities are compared, ``[K, B]``."""
    return np.stack([QUANTITIES[key.quantity].scale for key in keys])


@dataclass(frozen=True, slots=True)
class Run:
    """One run as buckets of the sketch's grid: ``buckets`` ``[S, K]``, in the order of ``keys``."""

    keys: tuple[Key, ...]
    buckets: Buckets

    @property
    def steps(self) -> int:
        """How many tokens were generated."""
        return len(self.buckets)

    def aligned(self, keys: Sequence[Key]) -> Buckets:
        """The buckets in the order of other keys, ``[S, len(keys)]``; what it lacks is `NONE`."""
        places = {key: place for place, key in enumerate(self.keys)}
        padded = np.column_stack([self.buckets, np.full(self.steps, sketch.NONE, np.int16)])
        taken: Buckets = padded[:, [places.get(key, -1) for key in keys]]
        return taken

    def to_json(self) -> dict[str, Any]:
        """The run in values that JSON has."""
        return {"keys": [list(key) for key in self.keys], "buckets": self.buckets.tolist()}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Run:
        """The run that `to_json` gave ``value`` for."""
        keys, rows = tuple(Key(*key) for key in value["keys"]), value["buckets"]
        return cls(keys, np.asarray(rows, dtype=np.int16).reshape(len(rows), len(keys)))


def run_of(record: GenerationRecord) -> Run:
    """The observed quantities of ``record``; without any, a run without keys."""
    columns = dict(_columns(record))
    if not columns:
        return Run((), np.empty((record.steps, 0), dtype=np.int16))
    return Run(tuple(columns), sketch.bucket(np.column_stack(list(columns.values()))))


def _columns(record: GenerationRecord) -> Iterator[tuple[Key, NDArray[np.floating]]]:
    if (logits := record.logits) is not None:
        yield Key(ENTROPY), logits.entropy
        yield Key(MARGIN), logits.margin
        yield Key(SURPRISAL), logits.surprisal
    if (hidden := record.hidden) is not None:
        yield from _per_layer(L2_NORM, hidden.layers, hidden.l2_norm)
    if (attention := record.attention) is not None:
        entropy = attention.normalized_entropy_mean
        collapsed = np.where(np.isfinite(attention.entropy_mean), attention.collapsed_heads, np.nan)
        yield from _per_layer(ATTENTION_ENTROPY, attention.layers, entropy)
        yield from _per_layer(COLLAPSED_HEADS, attention.layers, collapsed)


def _per_layer(
    quantity: str, layers: NDArray[np.int64], values: NDArray[np.floating]
) -> Iterator[tuple[Key, NDArray[np.floating]]]:
    for place, layer in enumerate(layers.tolist()):
        yield Key(quantity, layer), values[:, place]
