"""The published heuristics, reproduced on the reference runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corevital.assess import Assessment, Profile, assess
from corevital.assess.blame import layer_blame
from corevital.assess.early_warning import early_warning
from corevital.assess.fingerprint import fingerprint
from corevital.assess.flags import health_flags
from corevital.assess.heuristic_risk import heuristic_risk
from corevital.assess.repetition import REPETITION_STEPS, repetition_loop
from corevital.assess.risk import USUAL_LEVELS, risk
from corevital.assess.signals import compound_signals
from corevital.record import GenerationRecord, LogitColumns
from tests.assess.records import (
    attention_columns,
    floats,
    hidden_columns,
    logit_columns,
    record,
)

REFERENCE = Path(__file__).parents[1] / "reference"
RUNS = json.loads((REFERENCE / "runs.json").read_text())
REPETITIONS = json.loads((REFERENCE / "repetition.json").read_text())
PROFILE = Profile()

# Some reference runs are said to loop in fewer steps than a record can show a loop in.
SHOWING_REPETITION = [
    run for run in RUNS if not run["repetition_loop"] or len(run["l2_norm"]) >= REPETITION_STEPS
]


def run_id(run: dict[str, Any]) -> str:
    return f"{run['style']}-{len(run['l2_norm'])}x{len(run['l2_norm'][0])}"


def record_of(run: dict[str, Any]) -> GenerationRecord:
    cosine = 1.0 if run["repetition_loop"] else 0.0
    return record(
        logits=logit_columns(
            entropy=run["entropy_bits"],
            surprisal=run["surprisal_bits"],
            margin=run["top2_margin"],
            top_k_mass=run["top10_mass"],
        ),
        hidden=hidden_columns(
            run["l2_norm"],
            non_finite=run["nan"],
            last_layer_cosine=[cosine] * len(run["l2_norm"]),
        ),
        attention=attention_columns(run["collapsed_heads"], heads=run["heads"]),
        basin=run["basin_scores"],
    )


def assessment_of(run: dict[str, Any]) -> Assessment:
    generation = record_of(run)
    flags = replace(
        health_flags(generation, PROFILE),
        repetition_loop=run["repetition_loop"],
    )
    signals = compound_signals(generation)
    return Assessment(
        flags=flags,
        signals=signals,
        early_warning=early_warning(generation, flags),
        blame=layer_blame(generation),
        risk=risk(
            generation, flags, (), heuristic_risk(generation, flags, signals), None, USUAL_LEVELS
        ),
    )


@pytest.mark.parametrize("run", RUNS, ids=run_id)
def test_a_reference_run_has_the_published_results(run: dict[str, Any]) -> None:
    found, expected = assessment_of(run), run["expect"]

    assert found.flags.attention_collapse == expected["attention_collapse"]
    assert found.flags.attention_collapse_severity == (
        expected["attention_collapse_severity"] or 0.0
    )
    assert found.flags.mid_layer_anomaly == expected["mid_layer_anomaly"]
    assert found.flags.high_entropy_steps == expected["high_entropy_steps"]
    assert [[s.name, s.severity] for s in found.signals] == expected["compound"]
    assert found.early_warning.score == expected["early_warning_risk"]
    assert list(found.early_warning.signals) == expected["early_warning_signals"]
    assert [[b.layer, b.severity, len(b.reasons)] for b in found.blame] == expected["blame"]
    assert [factor.name for factor in found.risk.factors] == expected["risk_factors"]
    assert found.risk.heuristic == pytest.approx(expected["risk_score"], abs=1e-6)


def in_full_precision(run: dict[str, Any]) -> GenerationRecord:
    """The run as it was written down; the columns of a record have 32 bits."""
    logits = LogitColumns(
        entropy=np.asarray(run["entropy_bits"]),
        surprisal=np.asarray(run["surprisal_bits"]),
        margin=np.asarray(run["top2_margin"]),
        top_k_mass=np.asarray(run["top10_mass"]),
    )
    return replace(record_of(run), logits=logits)


@pytest.mark.parametrize("run", RUNS, ids=run_id)
def test_a_reference_run_has_the_published_fingerprint(run: dict[str, Any]) -> None:
    generation = in_full_precision(run)
    flags = replace(health_flags(generation, PROFILE), repetition_loop=run["repetition_loop"])
    heuristic = heuristic_risk(generation, flags, compound_signals(generation))

    found = fingerprint(generation, flags, heuristic.score)

    assert found == pytest.approx(run["expect"]["fingerprint"], rel=0, abs=1e-9)


@pytest.mark.parametrize("run", SHOWING_REPETITION, ids=run_id)
def test_assess_puts_the_same_parts_together(run: dict[str, Any]) -> None:
    found, expected = assess(record_of(run), PROFILE), assessment_of(run)

    for part in ("flags", "signals", "early_warning", "blame", "risk"):
        assert getattr(found, part) == getattr(expected, part)


@pytest.mark.parametrize("case", REPETITIONS, ids=lambda case: str(case["repetition_loop"]))
def test_a_reference_loop_is_recognised(case: dict[str, Any]) -> None:
    states = np.array(case["last_layer_vectors"])
    units = states / np.linalg.norm(states, axis=1, keepdims=True)
    cosine = floats([np.nan, *(units[1:] * units[:-1]).sum(axis=1)])

    assert repetition_loop(cosine, PROFILE.repetition_cosine) == case["repetition_loop"]
