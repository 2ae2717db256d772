"""The file of a baseline: what healthy runs of one model look like."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import numpy as np
from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from corevital.calibration import sketch
from corevital.calibration.quantities import QUANTITIES, Key
from corevital.calibration.schema import CalibrationContent, Part, one_of
from corevital.calibration.sketch import Counts

KIND: Final = "baseline"
VERSION: Final = 1


class Distribution(Part):
    """One quantity, at one layer if it has layers, over all steps of all runs.

    ``counts`` are those of the sketch's buckets from ``first`` on; the buckets before and after
    are empty. ``spread`` has one entry for each of the baseline's ``lengths``: the root mean square
    of the Wasserstein-1 distance of a healthy run of that length to the other runs, on the
    quantity's scale.
    """

    quantity: Annotated[str, one_of(QUANTITIES)]
    layer: NonNegativeInt | None = None
    first: Annotated[int, Field(ge=0, lt=sketch.SIZE)]
    counts: list[NonNegativeInt] = Field(min_length=1)
    spread: list[PositiveFloat]

    @property
    def key(self) -> Key:
        """The quantity and layer."""
        return Key(self.quantity, self.layer)

    @classmethod
    def of(cls, key: Key, counts: Counts, spread: list[float]) -> Distribution:
        """The distribution with the sketch ``counts`` ``[B]``, which is not empty."""
        seen = np.flatnonzero(counts)
        used = counts[seen[0] : seen[-1] + 1]
        return cls(
            quantity=key.quantity,
            layer=key.layer,
            first=int(seen[0]),
            counts=used.tolist(),
            spread=[float(f"{value:.4g}") for value in spread],
        )

    def every_count(self) -> Counts:
        """The sketch over all buckets, ``[B]``."""
        counts = np.zeros(sketch.SIZE, dtype=np.int64)
        counts[self.first : self.first + len(self.counts)] = self.counts
        return counts


class Baseline(CalibrationContent):
    """What healthy runs of one model look like; the content of a calibration file of this kind.

    ``lengths`` are the numbers of steps at which healthy runs were compared with each other, and
    ``limits`` how far they were apart then, at each length: the 0.99 quantile over runs of the
    largest distance of any quantity, in units of its spread. ``left_out`` counts the runs that were
    not used, by reason.
    """

    kind: Literal["baseline"] = KIND
    version: Literal[1] = VERSION
    steps: PositiveInt
    left_out: dict[str, PositiveInt]
    lengths: list[PositiveInt] = Field(min_length=1)
    limits: list[PositiveFloat]
    distributions: list[Distribution] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> Baseline:
        if self.lengths != sorted(set(self.lengths)):
            raise ValueError("lengths must ascend")
        if any(len(each.spread) != len(self.lengths) for each in self.distributions):
            raise ValueError("every distribution must have a spread for each length")
        if len(self.limits) != len(self.lengths):
            raise ValueError("there must be a limit for each length")
        if not all(any(each.counts) for each in self.distributions):
            raise ValueError("a distribution counts nothing")
        if any(each.first + len(each.counts) > sketch.SIZE for each in self.distributions):
            raise ValueError("a distribution has more buckets than there are")
        if len({each.key for each in self.distributions}) != len(self.distributions):
            raise ValueError("a distribution is there twice")
        return self
