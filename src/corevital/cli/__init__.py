"""The command line: ``corevital`` and ``python -m corevital``."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Sequence

from corevital.cli.arguments import CalibrateOptions, CalibrateRiskOptions, parse
from corevital.cli.errors import FAILURE, INTERRUPTED, command_error


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: done. 1: it failed, or the telemetry did not arrive. 2: wrong usage. 130: interrupted.
    """
    try:
        options = parse(argv)
    except SystemExit as finished:
        return int(finished.code or 0)
    _write_what_can_be_encoded()
    try:
        # What runs a command needs more than its arguments: `--help` has to be quick.
        if isinstance(options, CalibrateOptions):
            from corevital.cli.calibrate import calibrate

            return calibrate(options)
        if isinstance(options, CalibrateRiskOptions):
            from corevital.cli.extra import require

            require("calibrate", "sklearn", "matplotlib")
            from corevital.cli.calibrate_risk import calibrate_risk

            return calibrate_risk(options)
        from corevital.cli.run import run

        return run(options)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except Exception as error:
        if options.debug:
            traceback.print_exc()
        failure = command_error(error)
        _say(f"error: {failure}")
        return failure.status


def _write_what_can_be_encoded() -> None:
    """Let no character that the terminal lacks end a command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _say(message: str) -> None:
    print(f"corevital: {message}", file=sys.stderr)
