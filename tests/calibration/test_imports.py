from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
import corevital.calibration.build
import corevital.calibration.load
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_calibrating_needs_neither_torch_nor_opentelemetry() -> None:
    loaded = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, check=True, text=True
    ).stdout.split()

    assert "corevital" in loaded
    assert not {"torch", "opentelemetry", "transformers"} & set(loaded)
