"""Risk: one number that says how likely it is that a generation failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from corevital.assess.calibration import RiskModel
from corevital.assess.flags import HealthFlags
from corevital.assess.heuristic_risk import HeuristicRisk, RiskFactor
from corevital.assess.loops import Loop
from corevital.assess.observed import logit_series, mean
from corevital.record import GenerationRecord

NAN_EVIDENCE: Final = 1.0
REPETITION_EVIDENCE: Final = 0.9
DOUBTFUL_BITS: Final = 2.0
"""Mean surprisal per token at which the default score is 0.5."""


class RiskLevel(StrEnum):
    """The score in words."""

    LOW = "low"
    MODERATE = "moderate"
    HIGH = "high"
    CRITICAL = "critical"


class RiskSource(StrEnum):
    """Where the score comes from: labelled runs of the model, or a rule for all models."""

    CALIBRATED = "calibrated"
    UNCALIBRATED = "uncalibrated"


@dataclass(frozen=True, slots=True)
class RiskLevels:
    """The scores from which on a risk has each level; below ``moderate`` it is low."""

    moderate: float = 0.3
    high: float = 0.6
    critical: float = 0.85

    def of(self, score: float) -> RiskLevel:
        """The level of a ``score`` in [0, 1]."""
        if score >= self.critical:
            return RiskLevel.CRITICAL
        if score >= self.high:
            return RiskLevel.HIGH
        if score >= self.moderate:
            return RiskLevel.MODERATE
        return RiskLevel.LOW


USUAL_LEVELS: Final = RiskLevels()


@dataclass(frozen=True, slots=True)
class Risk:
    """``score`` in [0, 1] with its ``level`` and ``source``, beside the published heuristic.

    A calibrated score is a probability of failure, learned by ``calibration``; any other one only
    ranks. ``heuristic`` in [0, 1] and its ``factors`` are those of
    `corevital.assess.heuristic_risk`.
    """

    score: float
    level: RiskLevel
    source: RiskSource
    heuristic: float
    factors: tuple[RiskFactor, ...]
    calibration: str | None = None


def risk(
    record: GenerationRecord,
    flags: HealthFlags,
    loops: Sequence[Loop],
    heuristic: HeuristicRisk,
    model: RiskModel | None,
    levels: RiskLevels,
) -> Risk:
    """The risk of a generation: by ``model`` if it can score the record, else by default.

    What proves a failure is added to either as if it were independent of it: neither labelled
    answers nor how sure a model was of its tokens need to know of NaN or endless repetition.
    """
    score, calibration = risk_score(record, flags, model, looped=bool(loops))
    source = RiskSource.UNCALIBRATED if calibration is None else RiskSource.CALIBRATED
    return Risk(score, levels.of(score), source, heuristic.score, heuristic.factors, calibration)


def risk_score(
    record: GenerationRecord, flags: HealthFlags, model: RiskModel | None, *, looped: bool
) -> tuple[float, str | None]:
    """The score of `risk`, and the id of the calibration that gave it, if one did."""
    doubt = None if model is None or flags.nan_or_inf else model.probability(record)
    calibration = None if model is None or doubt is None else model.id
    if doubt is None:
        doubt = default_score(record)
    return 1.0 - (1.0 - doubt) * (1.0 - _evidence(flags, looped=looped)), calibration


def default_score(record: GenerationRecord) -> float:
    """A score in [0, 1) for every model: 1 - 2^(-s / 2), s the mean surprisal of a token in bits.

    Length-normalised likelihood (Malinin and Gales 2021, arXiv:2002.07650) as a score: 0 for a text
    that was certain, 0.5 at `DOUBTFUL_BITS` a token. 0 when nothing is known of the logits.
    """
    surprisal = logit_series(record.logits).surprisal
    if not surprisal.size:
        return 0.0
    bits = min(max(mean(surprisal), 0.0), 1000.0)
    return float(1.0 - 2.0 ** (-bits / DOUBTFUL_BITS))


def _evidence(flags: HealthFlags, *, looped: bool) -> float:
    if flags.nan_or_inf:
        return NAN_EVIDENCE
    return REPETITION_EVIDENCE if looped or flags.repetition_loop else 0.0
