"""Sequence estimators of uncertainty, from what one generation recorded anyway.

All but the mean margin grow with uncertainty. Definitions of those from the token distributions:
Fomicheva et al. 2020, "Unsupervised Quality Estimation for Neural Machine Translation"
(doi:10.1162/tacl_a_00330); of RAUQ: :mod:`corevital.assess.rauq`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from corevital.assess.observed import logit_series, mean
from corevital.assess.rauq import rauq
from corevital.record import GenerationRecord


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How unsure the model was of the whole sequence; NaN where that was not observed.

    ``negative_log_likelihood`` is the sum of the tokens' surprisals in bits, and
    ``negative_log_likelihood_per_token`` that sum divided by their number: 2 to its power is the
    sequence's perplexity. ``mean_entropy`` and ``max_entropy`` are of the next-token
    distributions, in bits. ``mean_margin`` (p1 - p2, in [0, 1]) falls as uncertainty grows.
    ``rauq`` is in bits.
    """

    negative_log_likelihood: float = math.nan
    negative_log_likelihood_per_token: float = math.nan
    mean_entropy: float = math.nan
    max_entropy: float = math.nan
    mean_margin: float = math.nan
    rauq: float = math.nan


def uncertainty(record: GenerationRecord) -> Uncertainty:
    """The estimators of ``record``.

    Means and maxima are over the observed steps. A likelihood needs all of them: it is NaN when
    the surprisal of any token is not finite.
    """
    if record.logits is None or record.steps == 0:
        return Uncertainty()
    surprisal = record.logits.surprisal.astype(np.float64)
    logits = logit_series(record.logits)
    likely = bool(np.isfinite(surprisal).all())
    return Uncertainty(
        negative_log_likelihood=float(surprisal.sum()) if likely else math.nan,
        negative_log_likelihood_per_token=float(surprisal.mean()) if likely else math.nan,
        mean_entropy=mean(logits.entropy),
        max_entropy=float(logits.entropy.max()) if logits.entropy.size else math.nan,
        mean_margin=mean(logits.margin),
        rauq=rauq(record.logits, record.attention),
    )
