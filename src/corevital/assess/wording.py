"""Small pieces of English for what is found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

_ELLIPSIS: Final = "..."


def printable(text: str) -> str:
    """``text`` on one line, with escapes for what cannot be printed."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def shortened(text: str, most: int) -> str:
    """``text`` in at most ``most`` characters, an ellipsis for what is left out."""
    return text if len(text) <= most else text[: most - len(_ELLIPSIS)] + _ELLIPSIS


def counted(number: int, noun: str) -> str:
    """A number with its noun, in the plural unless it is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def listed(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join((", ".join(parts[:-1]), parts[-1])) if len(parts) > 1 else "".join(parts)


def decimal(value: float) -> str:
    """A number with two decimals; one that would be long, with three digits."""
    return f"{value:.2f}" if abs(value) < 1e6 else f"{value:.3g}"
