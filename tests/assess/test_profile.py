from __future__ import annotations

import pytest

from corevital.assess import Profile, profile_for


@pytest.mark.parametrize(
    ("family", "l2_multiplier", "high_entropy_bits", "repetition_cosine"),
    [
        ("gpt2", 5, 5, 0.9995),
        ("llama", 10, 3.5, 0.9998),
        ("mistral", 8, 4, 0.9997),
        ("mixtral", 8, 4.5, 0.9997),
        ("qwen2", 8, 4.5, 0.9997),
        ("phi3", 7, 3.8, 0.9996),
    ],
)
def test_a_known_family_has_its_own_thresholds(
    family: str, l2_multiplier: float, high_entropy_bits: float, repetition_cosine: float
) -> None:
    expected = Profile(family, l2_multiplier, high_entropy_bits, repetition_cosine)

    assert profile_for(family) == expected


def test_any_other_family_has_the_default_thresholds() -> None:
    assert profile_for("mamba") == Profile("default", 8, 4, 0.9995)
