"""The report as a picture, for documents."""

from __future__ import annotations

import io
from typing import Final

from rich.console import Console
from rich.text import Text

from corevital.cli.export import Delivery
from corevital.cli.generate import printable
from corevital.cli.outcome import Outcome
from corevital.cli.report import HealthReport, trace_section

_WIDTH: Final = 88


def svg(outcome: Outcome, delivery: Delivery) -> str:
    """A terminal with prompt, text and report, as SVG."""
    console = Console(
        record=True,
        file=io.StringIO(),
        width=_WIDTH,
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(Text(f"> {printable(outcome.prompt)}\n", "bold"))
    console.print(Text(printable(outcome.text).strip() + "\n"))
    console.print(HealthReport(outcome), trace_section(outcome, delivery), sep="")
    return console.export_svg(title="corevital run")
