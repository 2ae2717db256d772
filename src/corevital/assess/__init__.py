"""Judging a generation by its record: pure functions over numpy arrays."""

from corevital.assess.assessment import Assessment, assess
from corevital.assess.blame import LayerBlame
from corevital.assess.early_warning import EarlyWarning
from corevital.assess.flags import HealthFlags
from corevital.assess.profile import Profile, profile_for
from corevital.assess.risk import Risk, RiskFactor, RiskLevel, risk_level
from corevital.assess.signals import CompoundSignal

__all__ = [
    "Assessment",
    "CompoundSignal",
    "EarlyWarning",
    "HealthFlags",
    "LayerBlame",
    "Profile",
    "Risk",
    "RiskFactor",
    "RiskLevel",
    "assess",
    "profile_for",
    "risk_level",
]
