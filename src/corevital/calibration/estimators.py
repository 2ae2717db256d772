"""Single numbers that each rank runs by how likely they failed, without any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from corevital.assess.uncertainty import uncertainty
from corevital.record import GenerationRecord

RAUQ: Final = "rauq"
ESTIMATORS: Final = (
    "surprisal.sum",
    "surprisal.mean",
    "surprisal.max",
    "entropy.mean",
    "entropy.max",
    "margin_deficit.mean",
    "margin_deficit.max",
    "top_k_mass_deficit.mean",
    "top_k_mass_deficit.max",
    RAUQ,
)
_LEAST: Final = 1e-4
"""Below, an estimator says no more than "certain"."""


def estimators(record: GenerationRecord) -> dict[str, float]:
    """The estimators that ``record`` has, of `ESTIMATORS`: the larger, the riskier.

    ``surprisal.sum`` is the negative log-likelihood of the text, ``surprisal.mean`` that per token,
    both in bits, as entropies are. A deficit is 1 minus the quantity. ``rauq``, in bits: see
    `corevital.assess.rauq`. What is not finite is missing.
    """
    logits = record.logits
    if logits is None or not record.steps:
        return {}
    known = uncertainty(record)
    with np.errstate(all="ignore"):
        lowest_margin, mean_mass = logits.margin.min(), logits.top_k_mass.mean(dtype=np.float64)
    found = {
        "surprisal.sum": known.negative_log_likelihood,
        "surprisal.mean": known.negative_log_likelihood_per_token,
        "surprisal.max": logits.surprisal.max(),
        "entropy.mean": known.mean_entropy,
        "entropy.max": known.max_entropy,
        "margin_deficit.mean": 1.0 - known.mean_margin,
        "margin_deficit.max": 1.0 - lowest_margin,
        "top_k_mass_deficit.mean": 1.0 - mean_mass,
        "top_k_mass_deficit.max": 1.0 - logits.top_k_mass.min(),
        RAUQ: known.rauq,
    }
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def logarithms(found: Mapping[str, float]) -> dict[str, float]:
    """Natural logarithms of estimators, which spread the many that are close to zero."""
    return {name: float(np.log(max(value, _LEAST))) for name, value in found.items()}
