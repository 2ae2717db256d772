"""Single numbers that each rank runs by how likely they failed, without any training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from corevital.assess.rauq import rauq
from corevital.record import AttentionColumns, GenerationRecord, LogitColumns

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
    with np.errstate(all="ignore"):
        found = _estimators(logits, record.attention)
    return {name: float(value) for name, value in found.items() if np.isfinite(value)}


def logarithms(found: Mapping[str, float]) -> dict[str, float]:
    """Natural logarithms of estimators, which spread the many that are close to zero."""
    return {name: float(np.log(max(value, _LEAST))) for name, value in found.items()}


def _estimators(
    logits: LogitColumns, attention: AttentionColumns | None
) -> dict[str, np.floating | float]:
    found = {
        "surprisal.sum": logits.surprisal.sum(dtype=np.float64),
        "surprisal.mean": logits.surprisal.mean(dtype=np.float64),
        "surprisal.max": logits.surprisal.max(),
        "entropy.mean": logits.entropy.mean(dtype=np.float64),
        "entropy.max": logits.entropy.max(),
        "margin_deficit.mean": 1.0 - logits.margin.mean(dtype=np.float64),
        "margin_deficit.max": 1.0 - logits.margin.min(),
        "top_k_mass_deficit.mean": 1.0 - logits.top_k_mass.mean(dtype=np.float64),
        "top_k_mass_deficit.max": 1.0 - logits.top_k_mass.min(),
    }
    return found | {RAUQ: rauq(logits, attention)}
