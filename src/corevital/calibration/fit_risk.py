"""Fits a risk calibration to labelled runs; needs scikit-learn."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from threadpoolctl import threadpool_limits

from corevital.calibration.estimators import RAUQ, logarithms
from corevital.calibration.features import ATTENTION, HIDDEN, LAST_LAYER, LOGITS, PROMPT
from corevital.calibration.risk import Fallback, Familiarity, Landmarks, Scorer
from corevital.calibration.scoring import (
    Observation,
    Values,
    blended,
    fallback_log_odds,
    mean_logarithm,
    squared_distances,
    standardised,
)

LEAST_RUNS: Final = 100
LEAST_OF_A_KIND: Final = 20
FOLDS: Final = 10
_INNER_FOLDS: Final = 5

# Captures from the fullest to the barest; a run is scored by the first whose features it has.
_CAPTURES: Final = (
    (LOGITS, LAST_LAYER, HIDDEN, ATTENTION, PROMPT),
    (LOGITS, LAST_LAYER, HIDDEN, ATTENTION),
    (LOGITS, LAST_LAYER),
    (LOGITS,),
)
# A weaker one ranks no better, and its probabilities are too sure of themselves.
_INVERSE_PENALTIES: Final = (0.01, 0.03, 0.1)
_RANK: Final = 40
_MOST_LANDMARKS: Final = 200
_SHARPNESS: Final = 2.0
_LANDMARK_SCALE: Final = 10.0
_NEAR, _FAR = 0.9, 0.99
_LEAST_SCALE: Final = 1e-6

Labels = NDArray[np.bool_]
Index = NDArray[np.int64]


class TooFewLabels(ValueError):
    """The labelled runs are too few, or nearly all of one kind."""


@dataclass(frozen=True, slots=True)
class LabelledRuns:
    """Runs of one model: what each says, whether it failed, and a number for each prompt."""

    observations: tuple[Observation, ...]
    failed: Labels
    prompts: Index

    def __len__(self) -> int:
        return len(self.observations)

    def __getitem__(self, index: Index) -> LabelledRuns:
        chosen = tuple(self.observations[place] for place in index)
        return LabelledRuns(chosen, self.failed[index], self.prompts[index])


def check_labels(failed: Labels) -> None:
    """Check that there is something to learn.

    Raises:
        TooFewLabels: there is not.
    """
    failures, others = int(failed.sum()), int((~failed).sum())
    if failures + others < LEAST_RUNS or min(failures, others) < LEAST_OF_A_KIND:
        raise TooFewLabels(
            f"{failures} runs failed and {others} did not; needed are {LEAST_RUNS} runs, "
            f"at least {LEAST_OF_A_KIND} of either kind"
        )


def check_runs(runs: LabelledRuns) -> None:
    """Check that there is something to learn, from prompts enough to test it on others.

    Raises:
        TooFewLabels: there is not.
    """
    check_labels(runs.failed)
    failed = len(np.unique(runs.prompts[runs.failed]))
    others = len(np.unique(runs.prompts[~runs.failed]))
    if min(failed, others) < FOLDS:
        raise TooFewLabels(
            f"runs of {failed} prompts failed and runs of {others} prompts did not; "
            f"needed are {FOLDS} prompts of either kind"
        )


def folds(runs: LabelledRuns, count: int = FOLDS) -> Iterator[tuple[Index, Index]]:
    """Indices to fit to and to test on; runs of one prompt are never on both sides."""
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=0)
    yield from splitter.split(np.zeros(len(runs)), runs.failed, runs.prompts)


def fit_scorers(runs: LabelledRuns) -> list[Scorer]:
    """One scorer for each amount of capture of the runs, from the fullest to the barest.

    Raises:
        TooFewLabels: there is nothing to learn.
    """
    check_runs(runs)
    return [fit_scorer(runs, groups) for groups in captures(runs)]


def captures(runs: LabelledRuns) -> list[tuple[str, ...]]:
    """The groups of features that enough ``runs`` have, from the fullest capture to the barest.

    Raises:
        TooFewLabels: too few have any.
    """
    known = frozenset().union(*(each.groups for each in runs.observations))
    offered = [tuple(group for group in groups if group in known) for groups in _CAPTURES]
    found: list[tuple[str, ...]] = [
        groups
        for groups in dict.fromkeys(offered)
        if LOGITS in groups and _suffice(_with(runs, groups))
    ]
    if not found:
        raise TooFewLabels("the logits were observed in too few of the labelled runs")
    return found


def _suffice(runs: LabelledRuns) -> bool:
    try:
        check_runs(runs)
    except TooFewLabels:
        return False
    return True


def _with(runs: LabelledRuns, groups: Sequence[str]) -> LabelledRuns:
    """Those that have the features of ``groups``."""
    has = [each.groups.issuperset(groups) for each in runs.observations]
    return runs[np.flatnonzero(has)]


def fit_scorer(runs: LabelledRuns, groups: Sequence[str]) -> Scorer:
    """Fit one scorer, to the features of ``groups`` in the runs that have them.

    The penalty is chosen, and the log-odds are scaled, by predictions for runs that were left out
    (Platt 1999), so that the probabilities hold for runs that were never seen.
    """
    # The last digits depend on the number of threads, and several only slow such small sums down.
    with threadpool_limits(1):
        return _fit_scorer(_with(runs, groups), groups)


def _fit_scorer(runs: LabelledRuns, groups: Sequence[str]) -> Scorer:
    names = _names(runs, groups)
    parts = [_Part.fit(runs, names, groups, *split) for split in folds(runs, _INNER_FOLDS)]
    familiarity = _familiarity(np.concatenate([part.nearest for part in parts]))
    trials = [_Trial.of(runs, parts, familiarity, penalty) for penalty in _INVERSE_PENALTIES]
    best = min(trials, key=lambda trial: trial.loss)
    space = _Space.fit(runs, names)
    regression = _regression(space.design(runs), runs.failed, best.inverse_penalty)
    weights = best.learned.slope * regression.coef_[0]
    return Scorer(
        groups=list(groups),
        features=list(names),
        mean=space.mean.tolist(),
        scale=_rounded(space.scale),
        weights=_rounded(weights[: len(names)]),
        intercept=best.learned.at(float(regression.intercept_[0])),
        landmarks=Landmarks(
            components=[_rounded(row) for row in space.components],
            places=[_rounded(row) for row in space.places],
            center=_rounded(space.center),
            sharpness=_SHARPNESS,
            familiarity=familiarity,
        ),
        landmark_weights=_rounded(_LANDMARK_SCALE * weights[len(names) :]),
        fallback=best.scaled(_fallback(runs, groups)),
    )


@dataclass(frozen=True, slots=True)
class _Trial:
    """One penalty, judged by what it says of runs that were left out.

    ``learned`` scales the regression's log-odds, ``all`` those that were blended with the
    fallback's; ``loss`` is that of the final probabilities.
    """

    inverse_penalty: float
    learned: _Scaling
    all: _Scaling
    loss: float

    @classmethod
    def of(
        cls,
        runs: LabelledRuns,
        parts: Sequence[_Part],
        familiarity: Familiarity,
        inverse_penalty: float,
    ) -> _Trial:
        tested = np.concatenate([part.tested for part in parts])
        failed = runs.failed[tested]
        raw = np.concatenate([part.log_odds(inverse_penalty) for part in parts])
        first = _Scaling.fit(raw, failed)
        general = np.concatenate([part.general for part in parts])
        nearest = np.concatenate([part.nearest for part in parts])
        mixed = blended(first.at(raw), general, nearest, familiarity)
        second = _Scaling.fit(mixed, failed)
        learned = _Scaling(second.slope * first.slope, second.at(first.intercept))
        return cls(inverse_penalty, learned, second, second.loss(mixed, failed))

    def scaled(self, fallback: Fallback) -> Fallback:
        """The fallback, scaled as it was when it was blended."""
        return fallback.model_copy(
            update={
                "slope": self.all.slope * fallback.slope,
                "intercept": self.all.at(fallback.intercept),
            }
        )


def _names(runs: LabelledRuns, groups: Sequence[str]) -> tuple[str, ...]:
    every = set.intersection(*(set(each.features) for each in runs.observations))
    first = runs.observations[0].features
    return tuple(name for name in first if name in every and name.split(".")[0] in groups)


@dataclass(frozen=True, slots=True)
class _Space:
    """Standardised features, and the landmarks among the runs they were standardised by."""

    names: tuple[str, ...]
    mean: Values
    scale: Values
    components: Values
    places: Values
    center: Values

    @classmethod
    def fit(cls, runs: LabelledRuns, names: tuple[str, ...]) -> _Space:
        values = _values(runs, names)
        mean, scale = values.mean(axis=0), values.std(axis=0)
        # A feature that never varied says nothing, here or later.
        constant = scale < _LEAST_SCALE * np.maximum(1.0, np.abs(mean))
        scale = np.where(constant, np.maximum(1.0, np.abs(mean)), scale)
        standard = standardised(values, mean, scale)
        rank = min(_RANK, len(names), len(runs) - 1)
        components = PCA(rank, svd_solver="full").fit(standard).components_
        projected = standard @ components.T
        # Runs of the same prompt may be the same in all.
        different = len(np.unique(standard, axis=0))
        count = min(_MOST_LANDMARKS, max(1, len(runs) // 4), different)
        clusters = KMeans(count, n_init=1, random_state=0).fit(projected)
        places = clusters.cluster_centers_
        distances = squared_distances(standard, components, places)
        center = np.exp(-_SHARPNESS * distances).mean(axis=0)
        return cls(names, mean, scale, components, places, center)

    def design(self, runs: LabelledRuns) -> Values:
        """What the regression is fitted to, ``[N, D + J]``."""
        standard = self.standard(runs)
        distances = squared_distances(standard, self.components, self.places)
        similarities = np.exp(-_SHARPNESS * distances) - self.center
        return np.hstack((standard, _LANDMARK_SCALE * similarities))

    def standard(self, runs: LabelledRuns) -> Values:
        return standardised(_values(runs, self.names), self.mean, self.scale)

    def nearest(self, runs: LabelledRuns) -> Values:
        """The squared distance of each run to its nearest landmark, ``[N]``."""
        distances = squared_distances(self.standard(runs), self.components, self.places)
        nearest: Values = distances.min(axis=1)
        return nearest


@dataclass(frozen=True, slots=True)
class _Part:
    """What some runs say of others, which were left out.

    ``design`` ``[M, D + J]`` and ``failed`` ``[M]`` are of the runs to fit to, ``left_out``,
    ``nearest`` and ``general``, the fallback's log-odds, of those to test on, whose indices are
    ``tested``.
    """

    design: Values
    failed: Labels
    left_out: Values
    nearest: Values
    general: Values
    tested: Index

    @classmethod
    def fit(
        cls,
        runs: LabelledRuns,
        names: tuple[str, ...],
        groups: Sequence[str],
        fitted: Index,
        tested: Index,
    ) -> _Part:
        known, unseen = runs[fitted], runs[tested]
        space = _Space.fit(known, names)
        return cls(
            design=space.design(known),
            failed=known.failed,
            left_out=space.design(unseen),
            nearest=space.nearest(unseen),
            general=fallback_log_odds(_fallback(known, groups), unseen.observations),
            tested=tested,
        )

    def log_odds(self, inverse_penalty: float) -> Values:
        regression = _regression(self.design, self.failed, inverse_penalty)
        log_odds: Values = regression.decision_function(self.left_out)
        return log_odds


def _regression(design: Values, failed: Labels, inverse_penalty: float) -> LogisticRegression:
    return LogisticRegression(C=inverse_penalty, max_iter=10_000).fit(design, failed)


def _familiarity(nearest: Values) -> Familiarity:
    """Runs of the labelled kinds are familiar: as near as those that were left out."""
    near, far = np.quantile(nearest, (_NEAR, _FAR)).tolist()
    return Familiarity(near=near, far=max(far, 1.05 * near, _LEAST_SCALE))


def _fallback(runs: LabelledRuns, groups: Sequence[str]) -> Fallback:
    """An average that needs no labels but for its scale.

    Which estimator ranks best differs from task to task, and that of the labelled tasks is a poor
    guide to another. Two that see different things do well on all: what the whole text cost, and
    how confidence was handed on by attention, or where that is not known, how open each step was.
    """
    known = set.intersection(*(set(each.estimators) for each in runs.observations))
    second = RAUQ if RAUQ in known and ATTENTION in groups else "entropy.mean"
    names = ["surprisal.sum", second]
    values = np.array(
        [[logarithms(each.estimators)[name] for name in names] for each in runs.observations]
    )
    mean, scale = values.mean(axis=0), np.maximum(values.std(axis=0), _LEAST_SCALE)
    average = mean_logarithm(runs.observations, names, mean, scale)
    scaling = _Scaling.fit(average, runs.failed)
    return Fallback(
        estimators=names,
        mean=mean.tolist(),
        scale=_rounded(scale),
        slope=scaling.slope,
        intercept=scaling.intercept,
    )


@dataclass(frozen=True, slots=True)
class _Scaling:
    """Log-odds as a straight line of a score (Platt 1999), which never falls."""

    slope: float
    intercept: float

    @classmethod
    def fit(cls, scores: Values, failed: Labels) -> _Scaling:
        # Platt's targets keep the slope finite where a score separates failures from the others.
        failures, others = int(failed.sum()), int((~failed).sum())
        target = np.where(failed, (failures + 1) / (failures + 2), 1 / (others + 2))
        fitted = LogisticRegression(C=np.inf, max_iter=10_000).fit(
            np.tile(scores, 2)[:, None],
            np.repeat([True, False], len(scores)),
            sample_weight=np.concatenate((target, 1.0 - target)),
        )
        slope = float(fitted.coef_[0, 0])
        if slope <= 0.0:
            # That it ranks the wrong way round among these runs is no reason to do so elsewhere.
            return cls(0.0, float(np.log(failures / others)))
        return cls(slope, float(fitted.intercept_[0]))

    @overload
    def at(self, scores: float) -> float: ...
    @overload
    def at(self, scores: Values) -> Values: ...
    def at(self, scores: float | Values) -> float | Values:
        """Log-odds at ``scores``."""
        return self.slope * scores + self.intercept

    def loss(self, scores: Values, failed: Labels) -> float:
        """Mean negative log-likelihood of the outcomes, to base e."""
        log_odds = self.at(scores)
        return float(np.logaddexp(0.0, np.where(failed, -log_odds, log_odds)).mean())


def _values(runs: LabelledRuns, names: Sequence[str]) -> Values:
    return np.array([[each.features[name] for name in names] for each in runs.observations])


def _rounded(values: Values) -> list[float]:
    return [float(f"{value:.5g}") for value in values.tolist()]
