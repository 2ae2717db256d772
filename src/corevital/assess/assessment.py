"""The whole judgement of one generation."""

from __future__ import annotations

from dataclasses import dataclass

from corevital.assess.blame import LayerBlame, layer_blame
from corevital.assess.early_warning import EarlyWarning, early_warning
from corevital.assess.flags import HealthFlags, health_flags
from corevital.assess.profile import Profile
from corevital.assess.risk import Risk, heuristic_risk
from corevital.assess.signals import CompoundSignal, compound_signals
from corevital.record import GenerationRecord


@dataclass(frozen=True, slots=True)
class Assessment:
    """What `assess` found in a generation."""

    flags: HealthFlags
    signals: tuple[CompoundSignal, ...]
    early_warning: EarlyWarning
    blame: tuple[LayerBlame, ...]
    risk: Risk


def assess(record: GenerationRecord, profile: Profile) -> Assessment:
    """Judge ``record`` by the published CoreVital heuristics under ``profile``'s thresholds.

    Total: any record gives bounded results. Parts, steps and layers that were not observed are
    left out of every statistic.
    """
    flags = health_flags(record, profile)
    signals = compound_signals(record)
    return Assessment(
        flags=flags,
        signals=signals,
        early_warning=early_warning(record, flags),
        blame=layer_blame(record),
        risk=heuristic_risk(record, flags, signals),
    )
