"""Compares a run with a baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.calibration import sketch
from corevital.calibration.baseline import Baseline
from corevital.calibration.quantities import COLLAPSED_HEADS, QUANTITIES, Key, run_of, scales
from corevital.calibration.sketch import Counts, Values
from corevital.record import GenerationRecord

MOST_ANOMALIES: Final = 8
_LOW, _HIGH = 0.05, 0.95


class Reference:
    """A baseline ready to be compared with; ``id`` tells it from others."""

    def __init__(self, baseline: Baseline, id_: str) -> None:
        self.id = id_
        self._keys = tuple(each.key for each in baseline.distributions)
        self._counts: Counts = np.stack([each.every_count() for each in baseline.distributions])
        self._cumulative = sketch.cumulative(self._counts)
        self._scales = scales(self._keys)
        self._lengths = np.asarray(baseline.lengths)
        spread = np.asarray([each.spread for each in baseline.distributions])
        # A healthy run stays below 1 in these units, at each length, ``[K, N]``.
        self._limits: Values = spread * np.asarray(baseline.limits)

    def divergence(self, record: GenerationRecord) -> Divergence:
        """How far ``record`` is from the baseline.

        The distance of each quantity, at each layer, is the Wasserstein-1 distance of its
        distribution over the run's steps to the baseline's, divided by the limit of healthy runs
        of that length. The largest distance d gives the score, d^2 / (1 + d^2). What either lacks
        is not compared.
        """
        counts = sketch.tally(run_of(record).aligned(self._keys))
        distances = self._distances(counts)
        if not np.isfinite(distances).any():
            return Divergence(self.id, None)
        furthest = float(np.nanmax(distances))
        found = sorted(self._anomalies(counts, distances), key=lambda each: -each.distance)
        collapsed = any(
            each.quantity == COLLAPSED_HEADS and each.direction is Direction.HIGHER
            for each in found
        )
        score = furthest**2 / (1.0 + furthest**2)
        return Divergence(self.id, score, tuple(found[:MOST_ANOMALIES]), collapsed)

    def _distances(self, counts: Counts) -> Values:
        """In units of the limit, ``[K]``; NaN where nothing was observed."""
        observed = counts.sum(axis=-1)
        place = np.searchsorted(self._lengths, observed, side="right") - 1
        limit = np.take_along_axis(self._limits, np.maximum(place, 0)[:, None], axis=1)[:, 0]
        moved = sketch.wasserstein(sketch.cumulative(counts), self._cumulative, self._scales)
        distances: Values = moved / limit
        return distances

    def _anomalies(self, counts: Counts, distances: Values) -> Iterator[Anomaly]:
        """One for each quantity, direction and group of consecutive layers."""
        group: list[int] = []
        for place in np.flatnonzero(distances > 1.0).tolist():
            if group and not self._continues(counts, group[-1], place):
                yield self._anomaly(counts, distances, group)
                group = []
            group.append(place)
        if group:
            yield self._anomaly(counts, distances, group)

    def _continues(self, counts: Counts, last: int, place: int) -> bool:
        before, key = self._keys[last], self._keys[place]
        return (
            key.layer is not None
            and before.layer is not None
            and key == Key(before.quantity, before.layer + 1)
            and self._direction(counts, last) is self._direction(counts, place)
        )

    def _direction(self, counts: Counts, place: int) -> Direction:
        """Which way most of the distance goes: a shift of the mean is at most as large as it."""
        usual, found, scale = self._counts[place], counts[place], self._scales[place]
        moved = sketch.wasserstein(sketch.cumulative(found), self._cumulative[place], scale)
        shift = float(sketch.mean(found, scale) - sketch.mean(usual, scale))
        if abs(shift) >= 0.5 * float(moved):
            return Direction.HIGHER if shift > 0 else Direction.LOWER
        wider = _width(found) > _width(usual)
        return Direction.WIDER if wider else Direction.NARROWER

    def _anomaly(self, counts: Counts, distances: Values, group: list[int]) -> Anomaly:
        worst = max(group, key=lambda place: float(distances[place]))
        key, distance = self._keys[worst], float(distances[worst])
        layers = tuple(layer for place in group if (layer := self._keys[place].layer) is not None)
        direction = self._direction(counts, worst)
        usual = [float(sketch.quantile(self._counts[worst], share)) for share in (_LOW, _HIGH)]
        quantity = QUANTITIES[key.quantity]
        description = (
            f"{quantity.words}{_where(layers, key.layer)} {direction}: "
            f"{float(sketch.mean(counts[worst])):.3g} on average, usually {usual[0]:.3g} to "
            f"{usual[1]:.3g}; {distance:.1f} times the limit of healthy runs"
        )
        return Anomaly(key.quantity, layers, key.layer, direction, distance, description)


def _width(counts: Counts) -> float:
    return float(sketch.quantile(counts, _HIGH) - sketch.quantile(counts, _LOW))


def _where(layers: tuple[int, ...], worst: int | None) -> str:
    if not layers:
        return ""
    if len(layers) == 1:
        return f" of layer {layers[0]}"
    return f" of layers {layers[0]} to {layers[-1]}, most at {worst},"
