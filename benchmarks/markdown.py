"""Tables in Markdown that are also easy to read as they are."""

from __future__ import annotations

from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose columns are aligned; all but the first to the right."""
    every = [header, *rows]
    widths = [max(len(row[place]) for row in every) for place in range(len(header))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join(
        "| " + " | ".join((row[0].ljust(widths[0]), *_right(row, widths))) + " |"
        for row in (header, rule, *rows)
    )


def _right(row: Sequence[str], widths: Sequence[int]) -> list[str]:
    return [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
