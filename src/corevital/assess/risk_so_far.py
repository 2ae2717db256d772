"""The risk of a generation that is still going on."""

from __future__ import annotations

from corevital.assess.calibration import Calibration
from corevital.assess.flags import health_flags
from corevital.assess.profile import Profile
from corevital.assess.risk import risk_score
from corevital.record import GenerationRecord


def risk_so_far(
    record: GenerationRecord, profile: Profile, calibration: Calibration, *, looped: bool
) -> float:
    """What the score of `corevital.assess.risk.risk` would be if ``record`` ended here.

    ``looped`` says whether the text has had a loop, which is known already while it is watched.
    """
    return risk_score(record, health_flags(record, profile), calibration.risk, looped=looped)[0]
