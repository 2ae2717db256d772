"""What was learned beforehand about the model that generated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from corevital.assess.divergence import Divergence
from corevital.record import GenerationRecord


class Baseline(Protocol):
    """Healthy runs of the model, to compare others with."""

    def divergence(self, record: GenerationRecord) -> Divergence:
        """How far ``record`` is from them."""
        ...


class RiskModel(Protocol):
    """Labelled runs of the model, learned from."""

    @property
    def id(self) -> str:
        """Tells it from others."""
        ...

    def probability(self, record: GenerationRecord) -> float | None:
        """Probability that the generation failed; ``None`` when too little was observed."""
        ...


@dataclass(frozen=True, slots=True)
class Calibration:
    """The calibrations that fit one model.

    ``refused`` says why some that were given do not fit it, when none of their kind does.
    """

    baseline: Baseline | None = None
    risk: RiskModel | None = None
    refused: str | None = None


NO_CALIBRATION = Calibration()
