"""The whole judgement of one generation."""

from __future__ import annotations

from dataclasses import dataclass, field

from corevital.assess.blame import LayerBlame, layer_blame
from corevital.assess.calibration import NO_CALIBRATION, Calibration
from corevital.assess.consistency import Violation, consistency
from corevital.assess.divergence import Divergence
from corevital.assess.early_warning import EarlyWarning, early_warning
from corevital.assess.fingerprint import NOTHING_OBSERVED, Fingerprint, fingerprint
from corevital.assess.flags import HealthFlags, health_flags
from corevital.assess.heuristic_risk import heuristic_risk
from corevital.assess.loops import Loop, find_loops
from corevital.assess.profile import Profile
from corevital.assess.risk import USUAL_LEVELS, Risk, RiskLevels, risk
from corevital.assess.signals import CompoundSignal, compound_signals
from corevital.assess.uncertainty import Uncertainty, uncertainty
from corevital.record import GenerationRecord


@dataclass(frozen=True, slots=True)
class Assessment:
    """What `assess` found in a generation."""

    flags: HealthFlags
    signals: tuple[CompoundSignal, ...]
    early_warning: EarlyWarning
    blame: tuple[LayerBlame, ...]
    risk: Risk
    divergence: Divergence | None = None
    calibration_refused: str | None = None
    uncertainty: Uncertainty = field(default_factory=Uncertainty)
    loops: tuple[Loop, ...] = ()
    fingerprint: Fingerprint = NOTHING_OBSERVED
    consistency: tuple[Violation, ...] = ()


def assess(
    record: GenerationRecord,
    profile: Profile,
    calibration: Calibration = NO_CALIBRATION,
    levels: RiskLevels = USUAL_LEVELS,
) -> Assessment:
    """Judge ``record`` under ``profile``'s thresholds, by what ``calibration`` knows of the model.

    Total: any record gives bounded results. Parts, steps and layers that were not observed are
    left out of every statistic.
    """
    baseline = calibration.baseline
    divergence = None if baseline is None else baseline.divergence(record)
    flags = health_flags(record, profile, divergence)
    signals = compound_signals(record)
    heuristic = heuristic_risk(record, flags, signals)
    loops = find_loops(record)
    return Assessment(
        flags=flags,
        signals=signals,
        early_warning=early_warning(record, flags),
        blame=layer_blame(record),
        risk=risk(record, flags, loops, heuristic, calibration.risk, levels),
        uncertainty=uncertainty(record),
        loops=loops,
        divergence=divergence,
        calibration_refused=calibration.refused,
        fingerprint=fingerprint(record, flags, heuristic.score),
        consistency=consistency(record),
    )
