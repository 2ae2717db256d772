"""The file of a risk calibration is checked when it is read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from corevital.calibration.load import CalibrationError, Calibrations, read_calibration
from corevital.calibration.risk import RiskCalibration
from corevital.calibration.scoring import RiskModel
from corevital.record import GenerationRecord
from tests.calibration.labelled import SUMMARY, planted_runs, risk_calibration
from tests.calibration.runs import MODEL

PLANTED = risk_calibration(planted_runs(groups=SUMMARY, decisive="logits.0")[0])


@pytest.fixture
def content() -> dict[str, Any]:
    """The file as it should be; a test breaks it."""
    found: dict[str, Any] = json.loads(PLANTED.model_dump_json())
    return found


def write(content: dict[str, Any], folder: Path) -> Path:
    path = folder / "risk.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def problem(content: dict[str, Any], folder: Path) -> str:
    with pytest.raises(CalibrationError) as raised:
        read_calibration(write(content, folder))
    return str(raised.value)


def test_what_is_written_is_read(content: dict[str, Any], tmp_path: Path) -> None:
    read = read_calibration(write(content, tmp_path))

    assert read.kind == "risk"
    assert read.content == PLANTED
    assert read.model.name == MODEL.name


def test_it_scores_the_runs_of_its_model(
    tiny_runs: list[GenerationRecord], tiny_risk: RiskCalibration, tmp_path: Path
) -> None:
    path = tmp_path / "tiny.json"
    path.write_text(tiny_risk.model_dump_json(), encoding="utf-8")

    found = Calibrations.read([path]).for_model(MODEL).risk

    assert found is not None
    written = RiskModel(tiny_risk, "id")
    for made in tiny_runs[:5]:
        assert found.probability(made) == written.probability(made)


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("mean", 5), ("scale", 5), ("weights", 5), ("landmark_weights", 75)],
)
def test_sizes_must_agree(content: dict[str, Any], tmp_path: Path, name: str, wanted: int) -> None:
    content["scorers"][0][name].pop()

    assert problem(content, tmp_path) == (
        f"scorers.0: Value error, {name} has {wanted - 1} numbers instead of {wanted}"
    )


@pytest.mark.parametrize("name", ["center", "places", "components"])
def test_sizes_of_landmarks_must_agree(content: dict[str, Any], tmp_path: Path, name: str) -> None:
    values = content["scorers"][1]["landmarks"][name]
    (values[0] if isinstance(values[0], list) else values).append(1.0)

    assert f"scorers.1: Value error, landmarks.{name} has" in problem(content, tmp_path)


def test_a_landmark_too_many(content: dict[str, Any], tmp_path: Path) -> None:
    places = content["scorers"][0]["landmarks"]["places"]
    places.append(places[0])

    assert "has 75 numbers instead of 76" in problem(content, tmp_path)


def test_sizes_of_the_fallback_must_agree(content: dict[str, Any], tmp_path: Path) -> None:
    content["scorers"][0]["fallback"]["estimators"].append("entropy.max")

    assert "estimators, mean and scale must be equally many" in problem(content, tmp_path)


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("fallback", "slope", -0.1),
        ("fallback", "intercept", math.nan),
        ("fallback", "estimators", []),
        ("fallback", "estimators", ["guess", "rauq"]),
        ("fallback", "scale", [1.0, 0.0]),
        ("landmarks", "sharpness", 0.0),
        ("landmarks", "places", []),
        ("landmarks", "familiarity", {"near": 1.0, "far": 1.0}),
        ("landmarks", "familiarity", {"near": -1.0, "far": 1.0}),
    ],
)
def test_values_without_a_meaning_are_refused(
    content: dict[str, Any], tmp_path: Path, part: str, name: str, value: Any
) -> None:
    content["scorers"][0][part][name] = value

    assert problem(content, tmp_path).startswith(f"scorers.0.{part}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scorers", []),
        ("runs", 0),
        ("failures", -1),
        ("model", {}),
        ("surplus", 1),
    ],
)
def test_so_are_they_at_the_top(
    content: dict[str, Any], tmp_path: Path, name: str, value: Any
) -> None:
    assert problem(content | {name: value}, tmp_path).startswith(name)


def test_groups_must_be_known(content: dict[str, Any], tmp_path: Path) -> None:
    content["scorers"][0]["groups"] = ["logits", "telepathy"]

    assert problem(content, tmp_path).startswith("scorers.0.groups.1")


def test_a_newer_version_is_not_guessed_at(content: dict[str, Any], tmp_path: Path) -> None:
    assert "version 2 is newer than 1" in problem(content | {"version": 2}, tmp_path)
