"""Which runs may be called healthy."""

from __future__ import annotations

from corevital.assess.assessment import Assessment
from corevital.record import GenerationRecord

NOT_OBSERVED = "not observed"
NO_TOKEN = "no token generated"
NAN_OR_INF = "NaN or Inf"
REPETITION = "repetition"


def unhealthy(record: GenerationRecord, assessment: Assessment | None) -> str | None:
    """Why a run must not shape a baseline, ``None`` if it may.

    Left out is what is wrong in any model. A mid-layer anomaly or collapsed heads are kept: they
    are told by thresholds that are the same for every model of a family, in place of which a
    baseline learns what this model usually does.
    """
    if assessment is None or record.hidden is None or record.logits is None:
        return NOT_OBSERVED
    if not record.steps:
        return NO_TOKEN
    if assessment.flags.nan_or_inf:
        return NAN_OR_INF
    if assessment.flags.repetition_loop or assessment.loops:
        return REPETITION
    return None
