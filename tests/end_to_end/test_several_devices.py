"""A model whose layers are divided between two devices of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.batching import IS_CURRENT
from tests.end_to_end.apps import two_devices
from tests.end_to_end.apps.two_devices import FAMILIES, WAYS
from tests.instrumentation import TIMES

ROOT = Path(__file__).parents[2]
SIGNALS = ("logits", "hidden", *(("attention", "prompt") if IS_CURRENT else ()))
"""Those that every family shows; T5 of older releases calls attention in a way of its own."""

Results = dict[str, tuple[dict[str, Any], dict[str, Any]]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What is generated and said of it on one device and on two, by family and way."""
    written = tmp_path_factory.mktemp("devices") / "results.json"
    subprocess.run([sys.executable, "-m", two_devices.__name__, str(written)], cwd=ROOT, check=True)
    found: Results = json.loads(written.read_text())
    return found


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", FAMILIES)
def test_it_generates_the_same_and_shows_what_one_device_shows(
    family: str, way: str, results: Results
) -> None:
    on_one, on_two = results[f"{family}, {way}"]
    assert on_two["observed"] == on_two["plain"] == on_one["plain"]
    assert len(on_two["said"]) == len(on_one["said"])
    for said, expected in zip(on_two["said"], on_one["said"], strict=True):
        for signal in SIGNALS:
            assert said[0][f"corevital.capture.{signal}"] == "captured"
        assert "corevital.capture.failures" not in said[0]
        for part, part_expected in zip(said, expected, strict=True):
            assert set(part) == set(part_expected)
            for name in set(part) - TIMES:
                assert part[name] == approximately(part_expected[name]), name


def approximately(value: Any) -> Any:
    """A number, or several, but for rounding."""
    numbers = value if isinstance(value, list) else [value]
    rounded = any(isinstance(number, float) for number in numbers)
    return pytest.approx(value, rel=1e-4, abs=1e-5, nan_ok=True) if rounded else value
