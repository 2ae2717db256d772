"""``corevital run``: one generation, and its health."""

from __future__ import annotations

import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from rich.console import Console, RenderableType
from rich.text import Text

from corevital.cli.arguments import RunOptions
from corevital.cli.destination import Destination, resolve_destination
from corevital.cli.errors import INTERRUPTED, USAGE, CommandError
from corevital.cli.export import Delivery, Telemetry
from corevital.cli.json_report import json_report
from corevital.cli.load import LoadedModel, loaded_model
from corevital.cli.observe import observation_settings, observe
from corevital.cli.outcome import Outcome
from corevital.cli.picture import svg
from corevital.cli.report import HealthReport, trace_section
from corevital.cli.source import locate
from corevital.settings import load_settings


def run(options: RunOptions) -> int:
    """Generate, report, and return the exit status.

    Raises:
        CommandError: what was asked for cannot be done, or the telemetry did not arrive.
    """
    settings = observation_settings(options.capture, options.calibration)
    destination = resolve_destination(options.otlp_endpoint, options.trace_file, os.environ)
    source = locate(options.model)
    # The stream as it is now: during the conversion from GGUF another takes its place.
    notes = Console(file=sys.stderr)
    with loaded_model(source, options.device, notes, debug=options.debug) as loaded:
        if options.calibration is not None:
            _check_calibration(loaded, settings)
        telemetry = Telemetry(destination)
        try:
            write = None if options.json else _write
            outcome = observe(loaded, options, settings, telemetry, write)
            if not options.json:
                # The text that was interrupted has not ended its line.
                _write("\n\n" if outcome.interrupted else "\n")
                _show(HealthReport(outcome))
        finally:
            with _sending_status(notes, destination):
                delivery = telemetry.finish()
    _conclude(options, outcome, delivery)
    if delivery.error is not None:
        raise CommandError(f"the telemetry is incomplete: {delivery.error}")
    return INTERRUPTED if outcome.interrupted else 0


def _check_calibration(loaded: LoadedModel, settings: dict[str, Any]) -> None:
    """Refuse a calibration that was asked for and does not fit the model."""
    from corevital.capture.observation import describe_model

    calibrations = load_settings(**settings).calibrations
    if (refused := calibrations.matching(describe_model(loaded.model)).refused) is not None:
        raise CommandError(f"--calibration: {refused}", USAGE)


def _sending_status(console: Console, destination: Destination) -> AbstractContextManager[object]:
    """Show that an endpoint is waited for."""
    if destination.endpoints and console.is_terminal:
        return console.status(Text(f"Sending to {destination.traces}"))
    return nullcontext()


def _conclude(options: RunOptions, outcome: Outcome, delivery: Delivery) -> None:
    """Report what had to wait until it was known whether the telemetry arrived."""
    if options.json:
        print(json.dumps(json_report(outcome, delivery), indent=2, allow_nan=False))
    else:
        _show(trace_section(outcome, delivery))
    if options.svg is not None:
        try:
            with open(options.svg, "w", encoding="utf-8") as file:
                file.write(svg(outcome, delivery))
        except OSError as error:
            raise CommandError(f"cannot write {options.svg}: {error.strerror}") from error


def _show(renderable: RenderableType) -> None:
    """Print to standard output."""
    console = Console()
    if console.is_terminal:
        console.print(renderable)
        return
    with console.capture() as drawn:
        console.print(renderable)
    # Rich fills lines up with spaces, which are of no use in a file.
    _write("".join(f"{line.rstrip()}\n" for line in drawn.get().splitlines()))


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
