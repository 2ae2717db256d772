"""Two models generate in four threads for as long as ``--soak`` says: 20 seconds, or 300."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.apps import soak

ROOT = Path(__file__).parents[2]
MOST_GROWTH = 8 * 2**20
"""Bytes of resident memory by which the second half of the time may exceed the first."""


@pytest.fixture(scope="module")
def found(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the app writes.

    It has a process of its own, with one arena to allocate from: what other tests left free in
    between, and what four threads spread over arenas of theirs, comes and goes by tens of MiB.
    """
    results = tmp_path_factory.mktemp("soak") / "results.json"
    subprocess.run(
        [sys.executable, "-m", soak.__name__, str(pytestconfig.getoption("soak")), str(results)],
        cwd=ROOT,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
        check=True,
    )
    written: dict[str, Any] = json.loads(results.read_text())
    growth = written["more resident bytes"] / 2**20
    print(f"{sum(written['done'].values())} generations, resident memory {growth:+.1f} MiB")
    return written


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestThreads:
    def test_every_job_was_done_often(self, found: dict[str, Any]) -> None:
        assert min(found["done"].values()) >= 2

    def test_none_disturbs_another(self, found: dict[str, Any]) -> None:
        assert found["wrong"] == []
        assert found["failures"] == 0

    def test_no_object_is_kept(self, found: dict[str, Any]) -> None:
        assert found["more objects"] == {}

    def test_memory_does_not_grow(self, found: dict[str, Any]) -> None:
        assert found["more resident bytes"] < MOST_GROWTH
