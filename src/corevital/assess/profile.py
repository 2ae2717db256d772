"""Thresholds that differ between model families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Profile:
    """Thresholds of one model family; the published CoreVital profiles.

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

_PROFILES = {
    profile.name: profile
    for profile in (
        Profile("gpt2", l2_multiplier=5.0, high_entropy_bits=5.0, repetition_cosine=0.9995),
        Profile("llama", l2_multiplier=10.0, high_entropy_bits=3.5, repetition_cosine=0.9998),
        Profile("mistral", l2_multiplier=8.0, high_entropy_bits=4.0, repetition_cosine=0.9997),
        Profile("mixtral", l2_multiplier=8.0, high_entropy_bits=4.5, repetition_cosine=0.9997),
        Profile("qwen2", l2_multiplier=8.0, high_entropy_bits=4.5, repetition_cosine=0.9997),
        Profile("phi3", l2_multiplier=7.0, high_entropy_bits=3.8, repetition_cosine=0.9996),
    )
}


def profile_for(family: str) -> Profile:
    """The profile of a ``config.model_type``; the default profile for any other family."""
    return _PROFILES.get(family, DEFAULT_PROFILE)


def profile_names() -> tuple[str, ...]:
    """Names of all profiles."""
    return (DEFAULT_PROFILE.name, *_PROFILES)


def named_profile(name: str) -> Profile:
    """The profile of that name.

    Raises:
        KeyError: there is none.
    """
    return DEFAULT_PROFILE if name == DEFAULT_PROFILE.name else _PROFILES[name]
