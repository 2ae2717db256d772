"""Colours that can be read on dark and on light, and glyphs that can be encoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from rich.console import ConsoleOptions

from corevital.assess.risk import RiskLevel
from corevital.cli.sparkline import ASCII_BLOCKS, BLOCKS

# Of the 256 standard colours, those whose contrast to black and to white is alike.
GOOD: Final = "green4"
NOTABLE: Final = "dark_orange3"
BAD: Final = "red3"
QUIET: Final = "dim"

LEVEL_COLOURS: Final = {
    RiskLevel.LOW: GOOD,
    RiskLevel.MODERATE: NOTABLE,
    RiskLevel.HIGH: BAD,
    RiskLevel.CRITICAL: f"bold {BAD}",
}


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What bars and sparklines are drawn with."""

    blocks: str
    filled: str
    empty: str


_UNICODE: Final = Glyphs(BLOCKS, "━", "─")
_ASCII: Final = Glyphs(ASCII_BLOCKS, "=", "-")


def glyphs(options: ConsoleOptions) -> Glyphs:
    """The glyphs that the output can encode."""
    return _ASCII if options.ascii_only else _UNICODE
