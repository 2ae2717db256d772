"""The file of a risk calibration: how the runs of one model that fail differ from the others."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from corevital.calibration.estimators import ESTIMATORS
from corevital.calibration.features import GROUPS
from corevital.calibration.schema import CalibrationContent, Part, one_of

KIND: Final = "risk"
VERSION: Final = 1

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Vector = list[FiniteFloat]


class Fallback(Part):
    """Logistic regression on a mean of estimators, for runs unlike the labelled ones.

    The mean is that of the estimators' logarithms, each standardised by its ``mean`` and ``scale``
    over the labelled runs; all weigh the same, and more means riskier.
    """

    estimators: list[Annotated[str, one_of(ESTIMATORS)]] = Field(min_length=1)
    mean: Vector
    scale: list[PositiveFloat]
    slope: NonNegativeFloat
    intercept: FiniteFloat

    @model_validator(mode="after")
    def _same_sizes(self) -> Fallback:
        if not len(self.estimators) == len(self.mean) == len(self.scale):
            raise ValueError("estimators, mean and scale must be equally many")
        return self


class Familiarity(Part):
    """Distances to the nearest landmark: up to ``near`` a run is familiar, from ``far`` on not."""

    near: NonNegativeFloat
    far: PositiveFloat

    @model_validator(mode="after")
    def _in_order(self) -> Familiarity:
        if self.far <= self.near:
            raise ValueError("far must be larger than near")
        return self


class Landmarks(Part):
    """Typical runs in the space of the features' principal components.

    ``components`` ``[R, D]`` project standardised features, ``places`` ``[J, R]`` are the
    landmarks' projections, ``center`` ``[J]`` the mean similarity to each. The similarity to a
    landmark at squared distance d (per feature) is exp(-``sharpness`` d).
    """

    components: list[Vector]
    places: list[Vector] = Field(min_length=1)
    center: Vector
    sharpness: PositiveFloat
    familiarity: Familiarity


class Scorer(Part):
    """What scores the runs that have the features of some groups.

    Logistic regression on ``D`` standardised ``features`` (``mean``, ``scale``, clipped) and on the
    similarity to ``J`` landmarks. ``weights`` ``[D]`` and ``landmark_weights`` ``[J]`` give the
    log-odds of a failure.
    """

    groups: list[Annotated[str, one_of(GROUPS)]] = Field(min_length=1)
    features: list[str] = Field(min_length=1)
    mean: Vector
    scale: list[PositiveFloat]
    weights: Vector
    intercept: FiniteFloat
    landmarks: Landmarks
    landmark_weights: Vector
    fallback: Fallback

    @model_validator(mode="after")
    def _same_sizes(self) -> Scorer:
        width, landmarks = len(self.features), self.landmarks
        count, rank = len(landmarks.places), len(landmarks.components)
        sizes: tuple[tuple[str, list[Any], int], ...] = (
            ("mean", self.mean, width),
            ("scale", self.scale, width),
            ("weights", self.weights, width),
            ("landmark_weights", self.landmark_weights, count),
            ("landmarks.center", landmarks.center, count),
            *(("landmarks.components", row, width) for row in landmarks.components),
            *(("landmarks.places", row, rank) for row in landmarks.places),
        )
        for name, values, wanted in sizes:
            if len(values) != wanted:
                raise ValueError(f"{name} has {len(values)} numbers instead of {wanted}")
        return self


class Quality(Part):
    """How well a score tells failures on runs that it was not fitted to.

    ``auroc``: the chance that a failure scores higher than another run. ``ece`` and ``brier``: see
    `corevital.calibration.quality`; an estimator is no probability and has neither.
    """

    auroc: Share
    ece: Share | None = None
    brier: Share | None = None


class Evaluation(Part):
    """Cross-validation grouped by prompt: of the score with each scorer's groups, and of others."""

    folds: PositiveInt
    calibrated: dict[str, Quality]
    others: dict[str, Quality]


class RiskCalibration(CalibrationContent):
    """Probability of failure, learned from labelled runs of one model.

    ``scorers`` stand in the order in which they are tried: the first whose features were all
    observed scores a run.
    """

    kind: Literal["risk"] = KIND
    version: Literal[1] = VERSION
    failures: NonNegativeInt
    scorers: list[Scorer] = Field(min_length=1)
    evaluation: Evaluation
