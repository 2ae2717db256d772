from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from corevital.calibration.identity import ModelIdentity
from corevital.calibration.risk import RiskCalibration
from corevital.calibration.scoring import RiskModel
from corevital.record import GenerationRecord

LOADED = """
import sys
import corevital.calibration.build
import corevital.calibration.load
print(*{name.partition(".")[0] for name in sys.modules})
"""

SCORED = """
import pickle, sys
from pathlib import Path
for name in ("sklearn", "scipy", "matplotlib"):
    sys.modules[name] = None  # Importing it is an error now.
from corevital.calibration.load import Calibrations
record = pickle.load(sys.stdin.buffer)
print(Calibrations.read([Path(sys.argv[1])]).for_model(record.model).risk.probability(record))
"""


def test_calibrating_needs_neither_torch_nor_opentelemetry() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, check=True, text=True
    ).stdout.split()

    assert "corevital" in loaded
    assert not {"torch", "opentelemetry", "transformers"} & set(loaded)


def test_loading_and_scoring_need_nothing_of_what_fitting_and_drawing_need(
    tiny_risk: RiskCalibration, tiny_runs: list[GenerationRecord], tmp_path: Path
) -> None:
    path = tmp_path / "risk.json"
    made = tiny_risk.model_copy(update={"model": ModelIdentity.of(tiny_runs[0].model)})
    path.write_text(made.model_dump_json(), encoding="utf-8")
    scored = subprocess.run(
        [sys.executable, "-c", SCORED, str(path)],
        input=pickle.dumps(tiny_runs[0]),
        capture_output=True,
        check=True,
    ).stdout

    expected = RiskModel(tiny_risk, "tiny").probability(tiny_runs[0])
    assert expected is not None
    assert float(scored) == pytest.approx(expected, rel=1e-6)
