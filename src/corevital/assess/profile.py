"""Thresholds that differ between model families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Final

from corevital.assess.profile_file import ProfileError, ProfileFile, parse_profile

_SUFFIX: Final = ".toml"


@dataclass(frozen=True, slots=True)
class Profile:
    """Thresholds of one model family; without arguments, the published defaults.

    ``l2_multiplier``: how many times the early layers' median L2 norm is anomalous in the middle
    layers. ``high_entropy_bits``: above it a step counts as high-entropy.
    ``repetition_cosine``: above it two consecutive last-layer states count as the same.
    """

    name: str = "default"
    l2_multiplier: float = 8.0
    high_entropy_bits: float = 4.0
    repetition_cosine: float = 0.9995

    def with_overrides(self, overrides: Mapping[str, float]) -> Profile:
        """This profile with some thresholds replaced."""
        return replace(self, **dict(overrides))  # type: ignore[arg-type]


DEFAULT_PROFILE = Profile()


@cache
def _built_in() -> dict[str, ProfileFile]:
    """The profiles that come with the package, by name, the default first."""
    found = {
        file.name.removesuffix(_SUFFIX): parse_profile(file.read_bytes())
        for file in files("corevital.assess").joinpath("profiles").iterdir()
        if file.name.endswith(_SUFFIX)
    }
    return dict(sorted(found.items(), key=lambda each: (each[0] != DEFAULT_PROFILE.name, each[0])))


@cache
def _names_by_family() -> dict[str, str]:
    return {family: name for name, file in _built_in().items() for family in file.families}


def profile_for(family: str) -> Profile:
    """The profile of a ``config.model_type``; the default profile for any other family."""
    return named_profile(_names_by_family().get(family, DEFAULT_PROFILE.name))


def profile_names() -> tuple[str, ...]:
    """Names of the profiles that come with the package."""
    return tuple(_built_in())


def named_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        KeyError: there is none.
    """
    return _profile(name, _built_in()[name])


def load_profile(name_or_path: str) -> Profile:
    """The profile of that name, or else that of a TOML file, named after the file.

    A threshold that the file leaves out is the default's.

    Raises:
        ProfileError: there is neither, or the file cannot be used.
    """
    if name_or_path in _built_in():
        return named_profile(name_or_path)
    path = Path(name_or_path)
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:
        # A path with a null character is a ValueError.
        reason = getattr(error, "strerror", None) or str(error)
        raise ProfileError(f"there is no such name, and as a file: {reason}") from None
    return _profile(path.stem, parse_profile(content))


def _profile(name: str, file: ProfileFile) -> Profile:
    return replace(DEFAULT_PROFILE, name=name).with_overrides(file.thresholds)
