from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CONFIG_MAPPING

from corevital.assess import Profile, profile_for
from corevital.assess.profile import (
    DEFAULT_PROFILE,
    load_profile,
    named_profile,
    profile_names,
)
from corevital.assess.profile_file import THRESHOLDS, ProfileError, parse_profile

FILES = sorted((Path(__file__).parents[2] / "src/corevital/assess/profiles").glob("*.toml"))


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
def test_a_family_with_a_published_profile_has_its_thresholds(
    family: str, l2_multiplier: float, high_entropy_bits: float, repetition_cosine: float
) -> None:
    expected = Profile(family, l2_multiplier, high_entropy_bits, repetition_cosine)

    assert profile_for(family) == expected


@pytest.mark.parametrize("family", ["qwen3", "gemma", "t5", "bart"])
def test_a_family_without_one_has_the_default_thresholds_under_its_own_name(family: str) -> None:
    assert profile_for(family) == Profile(family, 8, 4, 0.9995)


@pytest.mark.parametrize("family", ["mamba", "unknown", ""])
def test_any_other_family_has_the_default_profile(family: str) -> None:
    assert profile_for(family) == Profile("default", 8, 4, 0.9995)


@pytest.mark.parametrize(
    ("family", "profile"),
    [
        ("gemma3_text", "gemma"),
        ("gemma2", "gemma"),
        ("qwen2_moe", "qwen2"),
        ("qwen3_moe", "qwen3"),
        ("mt5", "t5"),
        ("mbart", "bart"),
        ("ministral", "mistral"),
    ],
)
def test_relatives_share_a_profile(family: str, profile: str) -> None:
    assert profile_for(family).name == profile


def test_there_is_a_file_for_each_profile_the_default_first() -> None:
    assert profile_names() == ("default", *(file.stem for file in FILES if file.stem != "default"))


def test_the_default_of_the_file_is_that_of_the_code() -> None:
    assert named_profile("default") == DEFAULT_PROFILE == Profile()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_has_all_thresholds_and_says_where_they_come_from(file: Path) -> None:
    assert parse_profile(file.read_bytes()).thresholds.keys() == THRESHOLDS.keys()
    assert "# Source: " in file.read_text()


def test_no_family_is_in_two_files_and_all_are_known_to_transformers() -> None:
    families = [name for file in FILES for name in parse_profile(file.read_bytes()).families]

    assert len(families) == len(set(families))
    # Of these, transformers 4.57 does not know all.
    newer = {"ministral", "ministral3"}
    assert set(families) - newer <= set(CONFIG_MAPPING)


# A file of one's own


def test_a_file_gives_a_profile_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("l2_multiplier = 3\nhigh_entropy_bits = 2.5\nrepetition_cosine = 1\n")

    assert load_profile(str(file)) == Profile("mine", 3.0, 2.5, 1.0)


def test_a_threshold_that_the_file_leaves_out_is_the_default(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("high_entropy_bits = 2.5\n")

    assert load_profile(str(file)) == Profile("mine", 8.0, 2.5, 0.9995)


def test_a_name_comes_before_a_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("llama").write_text("l2_multiplier = 1\n")

    assert load_profile("llama").l2_multiplier == 10


@pytest.mark.parametrize("name", ["nonsense", "a\0b", ""])
def test_what_is_neither_a_name_nor_a_file_is_an_error(name: str) -> None:
    with pytest.raises(ProfileError, match="no such name"):
        load_profile(name)


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="directory"):
        load_profile(str(tmp_path))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"l2_multiplier 3", "no TOML file: .*line 1"),
        (b"\xff\xfe", "no TOML file: .*utf-8"),
        (b"", "has no threshold"),
        (b'families = ["x"]', "has no threshold"),
        (b"l2_multiplyer = 3\n[other]", "has l2_multiplyer, other, which"),
        (b"l2_multiplier = -1", "l2_multiplier is -1, not a number above 0"),
        (b"l2_multiplier = true", "l2_multiplier is True, not a number"),
        (b"l2_multiplier = '8'", "l2_multiplier is '8', not a number"),
        (b"high_entropy_bits = nan", "high_entropy_bits is nan, not a number"),
        (b"high_entropy_bits = inf", "high_entropy_bits is inf, not a number"),
        (b"high_entropy_bits = 1" + b"0" * 400, "not a number above 0"),
        (b"repetition_cosine = 1.5", "1.5, not a number above 0 and at most 1"),
        (b"l2_multiplier = 3\nfamilies = 'x'", "families is not a list of strings"),
        (b"l2_multiplier = 3\nfamilies = [1]", "families is not a list of strings"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_in_one_line(content: bytes, problem: str) -> None:
    with pytest.raises(ProfileError, match=problem) as raised:
        parse_profile(content)

    assert "\n" not in str(raised.value)
