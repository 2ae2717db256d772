"""Reads the thresholds of a model family from a TOML file."""

from __future__ import annotations

import sys
import tomllib
from dataclasses import dataclass
from typing import Any, Final

# Each threshold with the largest value it can have; all are above 0.
_UNLIMITED: Final = sys.float_info.max
THRESHOLDS: Final = {
    "l2_multiplier": _UNLIMITED,
    "high_entropy_bits": _UNLIMITED,
    "repetition_cosine": 1.0,
}
FAMILIES: Final = "families"


class ProfileError(ValueError):
    """A profile that does not exist or cannot be used; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class ProfileFile:
    """What a file says: thresholds by name, and the ``config.model_type`` it is for."""

    thresholds: dict[str, float]
    families: tuple[str, ...]


def parse_profile(content: bytes) -> ProfileFile:
    """Parse a profile: thresholds, each optional, and optionally a list ``families``.

    Raises:
        ProfileError: it is no TOML, or has a key or value that is not accepted.
    """
    try:
        entries = tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProfileError(f"it is no TOML file: {error}") from None
    unknown = sorted(entries.keys() - THRESHOLDS.keys() - {FAMILIES})
    if unknown:
        raise ProfileError(f"it has {', '.join(unknown)}, which is no threshold of a profile")
    if not entries.keys() & THRESHOLDS.keys():
        raise ProfileError("it has no threshold")
    families = entries.pop(FAMILIES, [])
    if not isinstance(families, list) or not all(isinstance(each, str) for each in families):
        raise ProfileError(f"its {FAMILIES} is not a list of strings")
    return ProfileFile(
        {name: _threshold(name, value) for name, value in entries.items()}, tuple(families)
    )


def _threshold(name: str, value: Any) -> float:
    largest = THRESHOLDS[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and 0.0 < value <= largest):
        limit = f" and at most {largest:g}" if largest < _UNLIMITED else ""
        accepted = f"a number above 0{limit}"
        raise ProfileError(f"its {name} is {value!r}, not {accepted}")
    return float(value)
