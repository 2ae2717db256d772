"""A calibration is applied to the model that it was made for, and to no other."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
import torch

from corevital import CoreVitalSpanProcessor, Settings, SettingsError
from corevital.calibration.load import CalibrationError, read_calibration
from tests.calibration.test_load import SMOLLM2
from tests.calibration.tiny import baseline_file, risk_file
from tests.instrumentation import attributes
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument

DIVERGENCE = "corevital.baseline.divergence"
ANOMALIES = "corevital.baseline.anomalies"
BASELINE = "corevital.calibration.baseline"
REFUSED = "corevital.calibration.refused"


@pytest.fixture(scope="module")
def tiny_baseline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return baseline_file(tiny_model("llama"), tmp_path_factory.mktemp("calibration"))


def generate(model: GenerativeModel) -> None:
    model.generate(tiny_prompt(seed=99), max_new_tokens=6, do_sample=False)


def test_a_run_is_compared_with_the_baseline_of_its_model(
    tiny_baseline: Path, instrument: Instrument, telemetry: Telemetry
) -> None:
    instrument(calibration=tiny_baseline)
    generate(tiny_model("llama"))

    written = attributes(telemetry.spans()[0])
    assert written[BASELINE] == read_calibration(tiny_baseline).id
    assert 0.0 <= written[DIVERGENCE] < 0.5
    assert written[ANOMALIES] == ()
    assert REFUSED not in written


def test_a_damaged_layer_is_named_on_the_span(
    tiny_baseline: Path, instrument: Instrument, telemetry: Telemetry
) -> None:
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.model.layers[1].mlp.down_proj.weight.mul_(1000.0)
    instrument(calibration=tiny_baseline)
    generate(broken)

    written = attributes(telemetry.spans()[0])
    assert written[DIVERGENCE] > 0.9
    assert written[ANOMALIES][0].startswith("L2 norm of layers 1 to 2, most at 1, higher: ")


def test_the_variable_may_name_several_files(
    tiny_baseline: Path,
    instrument: Instrument,
    telemetry: Telemetry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("COREVITAL_CALIBRATION", f"{SMOLLM2}{os.pathsep}{tiny_baseline}")
    instrument()
    generate(tiny_model("llama"))

    written = attributes(telemetry.spans()[0])
    assert written[BASELINE] == read_calibration(tiny_baseline).id
    assert REFUSED not in written
    assert caplog.records == []


def test_a_baseline_of_another_model_is_refused_and_logged_once(
    tiny_baseline: Path,
    instrument: Instrument,
    telemetry: Telemetry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = tiny_model("gpt2")
    instrument(calibration=[tiny_baseline])
    with caplog.at_level(logging.WARNING):
        generate(other)
        generate(other)

    said = (
        "baseline tiny.json is not applied: made for LlamaForCausalLM, and this is another model: "
        "its name is GPT2LMHeadModel, not LlamaForCausalLM, its family is gpt2, not llama, "
        "its architecture is GPT2LMHeadModel, not LlamaForCausalLM"
    )
    assert [(each.levelname, each.getMessage()) for each in caplog.records] == [("ERROR", said)]
    for span in telemetry.spans():
        written = attributes(span)
        assert written[REFUSED] == said
        assert written.keys().isdisjoint({BASELINE, DIVERGENCE, ANOMALIES})
        assert "corevital.risk.score" in written


def test_a_bad_file_is_an_error_when_instrumenting(
    tmp_path: Path, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{}")
    monkeypatch.setenv("COREVITAL_CALIBRATION", str(bad))

    with pytest.raises(SettingsError, match=rf"^COREVITAL_CALIBRATION='{bad}': .* has no kind"):
        instrument()
    with pytest.raises(SettingsError, match="COREVITAL_CALIBRATION"):
        CoreVitalSpanProcessor()
    with pytest.raises(CalibrationError, match="has no kind"):
        CoreVitalSpanProcessor(Settings(calibration=(bad,)))


def test_the_score_of_a_risk_calibration_is_the_risk(
    tmp_path: Path, instrument: Instrument, telemetry: Telemetry
) -> None:
    path = risk_file(tiny_model("llama"), tmp_path)
    instrument(calibration=path)
    generate(tiny_model("llama"))

    written = attributes(telemetry.spans()[0])
    entropy = written["corevital.entropy.mean"]
    assert written["corevital.risk.score"] == pytest.approx(1 / (1 + 2 ** (4 - entropy)), abs=1e-4)
    assert written["corevital.risk.source"] == "calibrated"
    assert written["corevital.calibration.risk"] == read_calibration(path).id
    assert 0.0 <= written["corevital.risk.heuristic"] <= 1.0


def test_without_the_features_of_a_risk_calibration_the_default_score_is_the_risk(
    tmp_path: Path, instrument: Instrument, telemetry: Telemetry
) -> None:
    path = risk_file(tiny_model("llama"), tmp_path)
    instrument(calibration=path)
    broken = tiny_model("llama")
    with torch.no_grad():
        broken.model.norm.weight.fill_(torch.nan)
    generate(broken)

    written = attributes(telemetry.spans()[0])
    assert (written["corevital.risk.score"], written["corevital.risk.source"]) == (
        1.0,
        "uncalibrated",
    )
    assert "corevital.calibration.risk" not in written


def test_a_risk_calibration_of_another_model_is_refused(
    tmp_path: Path, instrument: Instrument, telemetry: Telemetry
) -> None:
    instrument(calibration=risk_file(tiny_model("llama"), tmp_path))
    generate(tiny_model("gpt2"))

    written = attributes(telemetry.spans()[0])
    assert written[REFUSED].startswith("risk risk.json is not applied: made for LlamaForCausalLM")
    assert written["corevital.risk.source"] == "uncalibrated"


def test_the_levels_of_a_risk_are_settings(instrument: Instrument, telemetry: Telemetry) -> None:
    instrument(risk_moderate=0.001, risk_high=0.002, risk_critical=0.003)
    generate(tiny_model("llama"))

    assert attributes(telemetry.spans()[0])["corevital.risk.level"] == "critical"


def test_risk_is_not_learned_from_another_top_k_mass(
    tmp_path: Path, instrument: Instrument
) -> None:
    path = risk_file(tiny_model("llama"), tmp_path)
    with pytest.raises(SettingsError, match=r"made with top_k=10, and here it is 5\)$"):
        instrument(calibration=path, top_k=5)
