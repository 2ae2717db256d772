"""Calibrations of a tiny model."""

from __future__ import annotations

import math
from pathlib import Path

from corevital.calibration.build import LEAST_RUNS
from corevital.calibration.identity import ModelIdentity
from corevital.calibration.risk import (
    Evaluation,
    Fallback,
    Familiarity,
    Landmarks,
    RiskCalibration,
    Scorer,
)
from corevital.telemetry.pipeline import Observed
from tests.calibration.runs import CAPTURE, CONDITIONS, baseline_of
from tests.instrumentation import instrumented
from tests.models import GenerativeModel, tiny_prompt
from tests.providers import in_memory_telemetry

RUNS = 2 * LEAST_RUNS
TOKENS = 6


def observed_runs(model: GenerativeModel, seeds: range, tokens: int = TOKENS) -> list[Observed]:
    """Greedy generations from random prompts."""
    found: list[Observed] = []
    with in_memory_telemetry() as telemetry, instrumented(telemetry, on_generation=found.append):
        for seed in seeds:
            model.generate(tiny_prompt(seed=seed), max_new_tokens=tokens, do_sample=False)
    return found


def baseline_file(model: GenerativeModel, folder: Path) -> Path:
    """A file in ``folder`` with the baseline of ``model``."""
    records = [each.record for each in observed_runs(model, range(RUNS))]
    path = folder / "tiny.json"
    baseline = baseline_of(records, model=ModelIdentity.of(records[0].model))
    path.write_text(baseline.model_dump_json(), encoding="utf-8")
    return path


def risk_file(model: GenerativeModel, folder: Path) -> Path:
    """A file in ``folder`` by which a mean entropy of e bits is a risk of 1 / (1 + 2^(4 - e))."""
    record = observed_runs(model, range(1))[0].record
    scorer = Scorer(
        groups=["logits"],
        features=["logits.entropy.mean"],
        mean=[4.0],
        scale=[1.0],
        weights=[math.log(2.0)],
        intercept=0.0,
        landmarks=Landmarks(
            components=[[1.0]],
            places=[[0.0]],
            center=[0.0],
            sharpness=1.0,
            familiarity=Familiarity(near=100.0, far=200.0),
        ),
        landmark_weights=[0.0],
        fallback=Fallback(
            estimators=["surprisal.sum"], mean=[0.0], scale=[1.0], slope=1.0, intercept=0.0
        ),
    )
    calibration = RiskCalibration(
        model=ModelIdentity.of(record.model),
        conditions=CONDITIONS,
        capture=CAPTURE,
        created="2026-01-01T00:00:00+00:00",
        created_with={},
        runs=1000,
        failures=500,
        scorers=[scorer],
        evaluation=Evaluation(folds=10, calibrated={}, others={}),
    )
    path = folder / "risk.json"
    path.write_text(calibration.model_dump_json(), encoding="utf-8")
    return path
