"""Runs of a tiny model, made once."""

from __future__ import annotations

import pytest

from corevital.calibration.risk import RiskCalibration
from corevital.record import GenerationRecord
from tests.calibration.labelled import TINY_RUNS, median_labels, risk_calibration, tiny_records
from tests.models import GenerativeModel, tiny_model


@pytest.fixture(scope="session")
def tiny() -> GenerativeModel:
    """A model with random weights."""
    return tiny_model("llama")


@pytest.fixture(scope="session")
def tiny_runs(tiny: GenerativeModel) -> list[GenerationRecord]:
    """Its runs under full capture."""
    return tiny_records(tiny, range(TINY_RUNS), "full")


@pytest.fixture(scope="session")
def tiny_risk(tiny_runs: list[GenerationRecord]) -> RiskCalibration:
    """A risk calibration fitted to these."""
    return risk_calibration(median_labels(tiny_runs))
