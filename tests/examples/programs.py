"""Runs a program as its user would: in a process of its own that exports to an OTLP receiver."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.otlp_receiver import OtlpReceiver

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
LONGEST_SECONDS = 120.0

_INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))


def python(program: Path, *arguments: str | Path) -> list[str]:
    """The command that runs a program with this interpreter."""
    return [sys.executable, str(program), *map(str, arguments)]


def instrumented_from_outside(command: list[str], *options: str) -> list[str]:
    """The command that runs another under ``opentelemetry-instrument``."""
    return [_INSTRUMENT, *options, *command]


def run(command: list[str], receiver: OtlpReceiver | None = None) -> str:
    """Run a command to its end and return what it printed; it must succeed."""
    finished = subprocess.run(
        command,
        env=_environment(receiver),
        capture_output=True,
        text=True,
        timeout=LONGEST_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@contextmanager
def started(
    command: list[str], receiver: OtlpReceiver, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command while the block runs; what it prints goes to the file ``log``."""
    with (
        log.open("wb") as sink,
        subprocess.Popen(
            command, env=_environment(receiver), stdout=sink, stderr=subprocess.STDOUT
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _environment(receiver: OtlpReceiver | None) -> dict[str, str]:
    if receiver is None:
        return dict(os.environ)
    return os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint}
