"""Scores a run by a risk calibration: numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from corevital.calibration.estimators import estimators, logarithms
from corevital.calibration.features import features, flat
from corevital.calibration.risk import Fallback, Familiarity, RiskCalibration, Scorer
from corevital.record import GenerationRecord

Values = NDArray[np.float64]

MOST_DEVIATIONS: Final = 4.0
"""A feature further from its mean counts as this far: no single one decides."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What a record says to a risk calibration.

    ``features`` under their full names, ``estimators`` as in `corevital.calibration.estimators`.
    """

    features: Mapping[str, float]
    estimators: Mapping[str, float]

    @property
    def groups(self) -> frozenset[str]:
        """The groups of features that were observed; without ``logits`` nothing can be scored."""
        return frozenset(name.partition(".")[0] for name in self.features)

    @classmethod
    def of(cls, record: GenerationRecord) -> Observation:
        """What ``record`` says."""
        estimates = estimators(record)
        return cls(flat(features(record, estimates)), estimates)


class RiskModel:
    """A risk calibration ready to score; ``id`` tells it from others."""

    def __init__(self, calibration: RiskCalibration, id_: str) -> None:
        self.id = id_
        self._scorers = [FittedScorer(scorer) for scorer in calibration.scorers]
        self._runs = calibration.runs

    def probability(self, record: GenerationRecord) -> float | None:
        """Probability that ``record``'s generation failed, inside (0, 1).

        ``None`` when no scorer has all of its features.
        """
        observation = Observation.of(record)
        for scorer in self._scorers:
            if scorer.applies_to(observation):
                return float(probabilities(scorer.log_odds([observation]), self._runs)[0])
        return None


class FittedScorer:
    """One scorer as arrays."""

    def __init__(self, scorer: Scorer) -> None:
        self._names = tuple(scorer.features)
        self._mean, self._scale = np.asarray(scorer.mean), np.asarray(scorer.scale)
        self._weights = np.asarray(scorer.weights)
        self._intercept = scorer.intercept
        self._landmark_weights = np.asarray(scorer.landmark_weights)
        self._places = np.asarray(scorer.landmarks.places)
        self._components = np.asarray(scorer.landmarks.components).reshape(-1, len(self._names))
        self._center = np.asarray(scorer.landmarks.center)
        self._sharpness = scorer.landmarks.sharpness
        self._familiarity = scorer.landmarks.familiarity
        self._fallback = scorer.fallback
        self._estimators = tuple(scorer.fallback.estimators)

    def applies_to(self, observation: Observation) -> bool:
        """Whether everything that it needs was observed."""
        return all(name in observation.features for name in self._names) and all(
            name in observation.estimators for name in self._estimators
        )

    def log_odds(self, observations: list[Observation]) -> Values:
        """Log-odds of a failure of ``N`` observations, ``[N]``.

        Far from every landmark the labelled runs say nothing about the features: there, more and
        more of the fallback's log-odds take the place of the regression's.
        """
        with np.errstate(all="ignore"):
            return self._log_odds(observations)

    def _log_odds(self, observations: list[Observation]) -> Values:
        given = [[each.features[name] for name in self._names] for each in observations]
        standard = standardised(np.asarray(given), self._mean, self._scale)
        distances = squared_distances(standard, self._components, self._places)
        similarities = np.exp(-self._sharpness * distances) - self._center
        learned = standard @ self._weights + similarities @ self._landmark_weights + self._intercept
        general = fallback_log_odds(self._fallback, observations)
        return blended(learned, general, distances.min(axis=1), self._familiarity)


def fallback_log_odds(fallback: Fallback, observations: Sequence[Observation]) -> Values:
    """Log-odds of ``N`` observations by their estimators alone, ``[N]``."""
    mean, scale = np.asarray(fallback.mean), np.asarray(fallback.scale)
    average = mean_logarithm(observations, fallback.estimators, mean, scale)
    return fallback.slope * average + fallback.intercept


def blended(learned: Values, general: Values, nearest: Values, familiarity: Familiarity) -> Values:
    """The ``learned`` log-odds of familiar runs, the ``general`` ones of others, ``[N]``.

    ``nearest`` is the squared distance of each to its nearest landmark; between near and far, the
    weight of what was learned falls linearly from 1 to 0.
    """
    near, far = familiarity.near, familiarity.far
    familiar = np.clip((far - nearest) / (far - near), 0.0, 1.0)
    mixed: Values = familiar * learned + (1.0 - familiar) * general
    return mixed


def mean_logarithm(
    observations: Sequence[Observation], names: Sequence[str], mean: Values, scale: Values
) -> Values:
    """Mean of the standardised logarithms of estimators ``names`` ``[E]``, ``[N]``."""
    found = [logarithms(each.estimators) for each in observations]
    values = np.array([[each[name] for name in names] for each in found])
    averages: Values = standardised(values, mean, scale).mean(axis=1)
    return averages


def standardised(values: Values, mean: Values, scale: Values) -> Values:
    """Features ``[N, D]`` in standard deviations from their mean, limited."""
    deviations: Values = ((values - mean) / scale).clip(-MOST_DEVIATIONS, MOST_DEVIATIONS)
    return deviations


def squared_distances(standard: Values, components: Values, places: Values) -> Values:
    """Of runs ``[N, D]`` to landmarks ``[J, R]``, per feature, ``[N, J]``."""
    projected = standard @ components.T
    lengths = np.square(projected).sum(axis=1)[:, None] + np.square(places).sum(axis=1)
    squares: Values = np.maximum(lengths - 2.0 * projected @ places.T, 0.0) / standard.shape[1]
    return squares


def probabilities(log_odds: Values, runs: int) -> Values:
    """Probabilities for log-odds that were learned from that many ``runs``.

    They stay as far from 0 and 1 as the rule of succession (Laplace) has it: so many runs, all of
    them failures or none, would not show more.
    """
    least = 1.0 / (runs + 2)
    # tanh does not overflow.
    logistic: Values = (0.5 * (1.0 + np.tanh(0.5 * log_odds))).clip(least, 1.0 - least)
    return logistic
