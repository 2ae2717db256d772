"""The command at a terminal: progress while it loads, colours, and none where none are wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import SOURCES
from tests.otlp_receiver import OtlpReceiver

pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
FOREGROUND_OF_256 = "\x1b[38;5;"


def at_a_terminal(*arguments: str, **environment: str) -> str:
    """Everything that ``python -m corevital`` writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-m", "corevital", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ
        | {"PYTHONPATH": str(SOURCES), "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
        | environment,
    )
    os.close(theirs)
    written = b""
    try:
        while piece := os.read(ours, 4096):
            written += piece
    except OSError:
        # How Linux tells that the last one has closed the terminal.
        pass
    os.close(ours)
    assert running.wait(60) == 0
    return written.decode("utf-8")


def test_progress_is_shown_and_taken_away_and_the_report_is_coloured(
    smollm2_folder: str, otlp_grpc: OtlpReceiver
) -> None:
    run = ("run", "--model", smollm2_folder, "--prompt", "Hi", "--max-new-tokens", "4")
    written = at_a_terminal(*run, "--otlp-endpoint", otlp_grpc.endpoint)

    loading, text = written.split("Hello!", 1)
    assert f"Loading {Path(smollm2_folder).name}" in loading
    assert "\x1b[?25h" in loading, "the cursor is shown again"
    assert FOREGROUND_OF_256 in text
    assert "Risk" in text
    assert len(otlp_grpc.spans()) == 1


def test_no_color_takes_the_colours_away(smollm2_folder: str) -> None:
    run = ("run", "--model", smollm2_folder, "--prompt", "Hi", "--max-new-tokens", "4")
    written = at_a_terminal(*run, NO_COLOR="1")

    assert "Risk" in written
    assert FOREGROUND_OF_256 not in written
