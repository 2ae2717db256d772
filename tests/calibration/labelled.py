"""Labelled runs: made up ones, in which it is known what decides, and a tiny model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from corevital.calibration.estimators import ESTIMATORS, RAUQ
from corevital.calibration.features import (
    ATTENTION,
    GROUPS,
    HIDDEN,
    LAST_LAYER,
    LOGITS,
    PROMPT,
)
from corevital.calibration.fit_risk import LabelledRuns, fit_scorers
from corevital.calibration.identity import ModelIdentity
from corevital.calibration.risk import Evaluation, RiskCalibration
from corevital.calibration.scoring import Observation, Values, probabilities
from corevital.record import GenerationRecord
from tests.calibration.runs import CAPTURE, CONDITIONS, MODEL
from tests.instrumentation import instrumented
from tests.models import GenerativeModel, tiny_prompt
from tests.providers import in_memory_telemetry

SUMMARY = (LOGITS, LAST_LAYER)
WIDTHS = {LOGITS: 3, LAST_LAYER: 2, HIDDEN: 4, ATTENTION: 4, PROMPT: 2}
DECISIVE = f"{HIDDEN}.0"
"""The feature that decides in `planted_runs`."""

RUNS = 300
TINY_RUNS = 120
TINY_TOKENS = 4


def observations(
    count: int, seed: int = 0, groups: Sequence[str] = GROUPS, far: float = 0.0
) -> list[Observation]:
    """Features that are normal and mean nothing; ``far`` moves them all, away from the others."""
    random = np.random.default_rng(seed)
    features = [f"{group}.{place}" for group in groups for place in range(WIDTHS[group])]
    estimators = [name for name in ESTIMATORS if name != RAUQ or ATTENTION in groups]
    return [
        Observation(
            dict(zip(features, (random.normal(size=len(features)) + far).tolist(), strict=True)),
            dict(zip(estimators, random.lognormal(size=len(estimators)).tolist(), strict=True)),
        )
        for _ in range(count)
    ]


def labelled(
    seen: Sequence[Observation], failed: Sequence[bool] | np.ndarray[Any, Any], *, prompts: int = 0
) -> LabelledRuns:
    """Each of a prompt of its own, or of ``prompts`` prompts in turn."""
    numbers = np.arange(len(seen))
    return LabelledRuns(
        tuple(seen), np.asarray(failed, dtype=bool), numbers % prompts if prompts else numbers
    )


def planted_runs(
    count: int = RUNS,
    seed: int = 0,
    *,
    strength: float = 3.0,
    groups: Sequence[str] = GROUPS,
    decisive: str = DECISIVE,
) -> tuple[LabelledRuns, Values]:
    """Runs whose log-odds of a failure are ``strength`` times one feature; and these log-odds."""
    seen = observations(count, seed, groups)
    log_odds = strength * np.array([each.features[decisive] for each in seen])
    chance = np.random.default_rng(seed + 10_000).random(count)
    return labelled(seen, chance < probabilities(log_odds, 10**9)), log_odds


def noise_runs(count: int = RUNS, seed: int = 0, groups: Sequence[str] = GROUPS) -> LabelledRuns:
    """Runs whose labels have nothing to do with what was observed."""
    return planted_runs(count, seed, strength=0.0, groups=groups)[0]


def risk_calibration(runs: LabelledRuns, **changes: Any) -> RiskCalibration:
    """A calibration fitted to ``runs``, not evaluated; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "model": ModelIdentity.of(MODEL),
        "conditions": CONDITIONS,
        "capture": CAPTURE,
        "created": "2026-01-01T00:00:00+00:00",
        "created_with": {"corevital": "0.1.0"},
        "runs": len(runs),
        "failures": int(runs.failed.sum()),
        "scorers": fit_scorers(runs),
        "evaluation": Evaluation(folds=10, calibrated={}, others={}),
    }
    return RiskCalibration(**(fields | changes))


def tiny_records(
    model: GenerativeModel,
    seeds: range,
    capture: str,
    tokens: int = TINY_TOKENS,
    prompt: Callable[[int], torch.Tensor] = lambda seed: tiny_prompt(seed=seed),
) -> list[GenerationRecord]:
    """Greedy generations under ``capture``, each from the ``prompt`` of its seed."""
    found: list[GenerationRecord] = []
    with (
        in_memory_telemetry() as telemetry,
        instrumented(
            telemetry,
            capture=capture,
            step_events="none",
            on_generation=lambda observed: found.append(observed.record),
        ),
    ):
        for seed in seeds:
            model.generate(prompt(seed), max_new_tokens=tokens, do_sample=False)
    return found


def median_labels(records: Sequence[GenerationRecord]) -> LabelledRuns:
    """The half with the larger norms in the last third of the layers count as failures."""
    seen = [Observation.of(record) for record in records]
    norms = np.array([each.features["hidden.l2_norm.late.mean"] for each in seen])
    return labelled(seen, norms > np.median(norms))


def without(record: GenerationRecord, *parts: str) -> GenerationRecord:
    """The record as if ``parts`` had not been observed."""
    nothing: dict[str, Any] = dict.fromkeys(parts)
    return replace(record, **nothing)
