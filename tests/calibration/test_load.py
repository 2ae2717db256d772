"""Calibration files are checked when they are read, and applied to their own model only."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from corevital.calibration.baseline import Baseline
from corevital.calibration.load import CalibrationError, Calibrations, read_calibration
from tests.calibration.runs import MODEL, healthy_baseline, healthy_record

SMOLLM2 = Path(__file__).parent / "data" / "smollm2.json"
"""A file of the first version, as ``corevital calibrate`` wrote it."""

OTHER = replace(MODEL, name="org/other")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.json"
    path.write_text(healthy_baseline(12, steps=4).model_dump_json(), encoding="utf-8")
    return path


def change(path: Path, **values: Any) -> Path:
    content = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def problem(path: Path) -> str:
    with pytest.raises(CalibrationError) as raised:
        read_calibration(path)
    assert raised.value.path == path
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_file_of_the_first_version_is_read() -> None:
    read = read_calibration(SMOLLM2)

    assert read.kind == "baseline"
    assert read.model.name == "SmolLM2-135M-Instruct"
    assert read.id.startswith("SmolLM2-135M-Instruct@")
    assert isinstance(read.content, Baseline)
    assert read.content.runs == 40
    assert len(read.content.distributions) == 3 + 3 * 30


def test_the_id_tells_contents_apart(file: Path) -> None:
    before = read_calibration(file).id

    assert read_calibration(file).id == before
    assert read_calibration(change(file, runs=13)).id != before


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert problem(tmp_path / "none.json") == "No such file or directory"
    assert problem(tmp_path) == "Is a directory"


@pytest.mark.parametrize("content", [b"", b"kind: baseline", b"\xff\xfe", b'{"kind": '])
def test_a_file_that_is_not_json(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_bytes(content)

    assert problem(path).startswith("it is not JSON: ")


@pytest.mark.parametrize("content", ["[]", "{}", "3", '{"version": 1}'])
def test_json_that_is_no_calibration(content: str, tmp_path: Path) -> None:
    path = tmp_path / "model.json"
    path.write_text(content)

    assert problem(path).startswith("it has no kind, which must be one of: baseline")


@pytest.mark.parametrize("kind", ["other", 3, None, ["baseline"]])
def test_a_kind_that_is_unknown(kind: object, file: Path) -> None:
    assert problem(change(file, kind=kind)).startswith(f"its kind {kind!r} is none of: baseline")


def test_a_version_that_is_newer(file: Path) -> None:
    said = "its version 2 is newer than 1, the newest that is read here"

    assert problem(change(file, version=2)) == said


def test_content_that_is_wrong_is_named(file: Path) -> None:
    said = problem(change(file, runs=0, steps="many"))

    assert said.startswith("runs: Input should be greater than 0")
    assert said.endswith("(and 1 more)")


def test_the_file_that_fits_is_used(file: Path) -> None:
    for paths in ([SMOLLM2, file], [file, SMOLLM2]):
        found = Calibrations.read(paths).matching(MODEL)

        assert found.refused is None
        assert found.baseline is not None
        assert found.baseline.divergence(healthy_record(1000)).score is not None


def test_of_two_that_fit_the_first_is_used(file: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.json"
    second.write_bytes(file.read_bytes())
    change(second, runs=13)
    found = Calibrations.read([file, second]).matching(MODEL)

    assert found.baseline is not None
    assert found.baseline.divergence(healthy_record(1000)).baseline == read_calibration(file).id


def test_files_for_other_models_are_refused(file: Path) -> None:
    found = Calibrations.read([file, SMOLLM2]).matching(OTHER)

    assert found.baseline is None
    assert found.refused is not None
    first, second = found.refused.split("; ")
    assert first == (
        "baseline model.json is not applied: made for org/model, and this is another model: "
        "its name is org/other, not org/model"
    )
    assert second.startswith("baseline smollm2.json is not applied: made for SmolLM2-135M-Instruct")


def test_without_files_nothing_is_refused() -> None:
    found = Calibrations().matching(MODEL)

    assert (found.baseline, found.refused) == (None, None)


def test_a_refusal_is_logged_once_for_each_model(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calibrations = Calibrations.read([file])
    with caplog.at_level(logging.DEBUG, "corevital"):
        for model in (OTHER, MODEL, OTHER, replace(MODEL, layers=5), MODEL, OTHER):
            found = calibrations.for_model(model)
            assert (found.refused is None) == (model == MODEL)

    assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
    assert "its name is org/other" in caplog.messages[0]
    assert "number of layers is 5" in caplog.messages[1]
