"""Judging a generation by its record: pure functions over numpy arrays."""

from corevital.assess.assessment import Assessment, assess
from corevital.assess.blame import LayerBlame
from corevital.assess.consistency import Violation
from corevital.assess.early_warning import EarlyWarning
from corevital.assess.flags import HealthFlags
from corevital.assess.heuristic_risk import HeuristicRisk, RiskFactor, heuristic_risk
from corevital.assess.loops import Loop, LoopDetector, find_loops, longest_loop
from corevital.assess.profile import Profile, profile_for
from corevital.assess.risk import Risk, RiskLevel, RiskLevels, RiskSource
from corevital.assess.signals import CompoundSignal
from corevital.assess.uncertainty import Uncertainty

__all__ = [
    "Assessment",
    "CompoundSignal",
    "EarlyWarning",
    "HealthFlags",
    "HeuristicRisk",
    "LayerBlame",
    "Loop",
    "LoopDetector",
    "Profile",
    "Risk",
    "RiskFactor",
    "RiskLevel",
    "RiskLevels",
    "RiskSource",
    "Uncertainty",
    "Violation",
    "assess",
    "find_loops",
    "heuristic_risk",
    "longest_loop",
    "profile_for",
]
