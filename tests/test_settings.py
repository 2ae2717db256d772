"""Settings come from the environment or keywords; a bad one is named with what it takes."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from corevital.assess.profile import Profile, named_profile, profile_names
from corevital.calibration.load import Calibrations
from corevital.intervention import Condition, Intervention
from corevital.record import CaptureMode
from corevital.settings import Settings, SettingsError, StepEvents, load_settings

SMOLLM2 = Path(__file__).parent / "calibration" / "data" / "smollm2.json"

# Each setting with a value that it takes, as written in an environment variable, and as it is read.
GOOD: dict[str, tuple[str, object]] = {
    "enabled": ("false", False),
    "capture": ("on_risk", CaptureMode.ON_RISK),
    "capture_ratio": ("0.25", 0.25),
    "step_events": ("both", StepEvents.BOTH),
    "prompt": ("0", False),
    "prompt_max_tokens": ("64", 64),
    "top_k": ("5", 5),
    "profile": ("llama", "llama"),
    "l2_multiplier": ("6.5", 6.5),
    "high_entropy_bits": ("3", 3.0),
    "repetition_cosine": ("0.99", 0.99),
    "risk_moderate": ("0.1", 0.1),
    "risk_high": ("0.5", 0.5),
    "risk_critical": ("0.99", 0.99),
    "calibration": (f"{SMOLLM2}{os.pathsep}{SMOLLM2}", (SMOLLM2, SMOLLM2)),
    "intervene": ("repetition, risk", (Condition.REPETITION, Condition.RISK)),
    "intervene_threshold": ("0.7", 0.7),
    "intervene_raises": ("true", True),
    "span_processor": ("no", False),
}

# Each setting with values that it does not take, and what the message must say of those it does.
BAD: list[tuple[str, str, tuple[str, ...]]] = [
    ("enabled", "maybe", ("true", "false")),
    ("capture", "all", tuple(mode.value for mode in CaptureMode)),
    ("capture_ratio", "1.5", ("1",)),
    ("capture_ratio", "-0.1", ("0",)),
    ("capture_ratio", "half", ("number",)),
    ("capture_ratio", "nan", ("1",)),
    ("step_events", "spans", tuple(where.value for where in StepEvents)),
    ("prompt", "x", ("true", "false")),
    ("prompt_max_tokens", "1", ("2",)),
    ("prompt_max_tokens", "many", ("integer",)),
    ("top_k", "0", ("1",)),
    ("top_k", "1001", ("1000",)),
    ("profile", "nonsense", tuple(profile_names())),
    ("l2_multiplier", "-1", ("greater than 0",)),
    ("high_entropy_bits", "0", ("greater than 0",)),
    ("high_entropy_bits", "high", ("number",)),
    ("repetition_cosine", "2", ("1",)),
    ("repetition_cosine", "0", ("greater than 0",)),
    ("risk_moderate", "0", ("greater than 0",)),
    ("risk_high", "1", ("less than 1",)),
    ("risk_critical", "high", ("number",)),
    ("calibration", "none.json", ("calibration file", "No such file")),
    ("calibration", __file__, ("calibration file", "not JSON")),
    ("intervene", "loops", tuple(Condition)),
    ("intervene_threshold", "0", ("greater than 0",)),
    ("intervene_threshold", "1.1", ("1",)),
    ("intervene_raises", "perhaps", ("true", "false")),
    ("span_processor", "perhaps", ("true", "false")),
]


def variable(name: str) -> str:
    return f"COREVITAL_{name.upper()}"


def test_the_lists_of_this_module_cover_every_setting() -> None:
    assert GOOD.keys() == Settings.model_fields.keys() == {name for name, _, _ in BAD}


def test_every_setting_says_what_it_is_for() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_by_default_everything_is_observed() -> None:
    settings = load_settings()

    assert settings.enabled
    assert settings.capture is CaptureMode.FULL
    assert settings.capture_ratio == 1.0
    assert settings.step_events is StepEvents.SPAN
    assert settings.span_processor


@pytest.mark.parametrize("name", GOOD)
def test_is_read_from_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    written, read = GOOD[name]
    monkeypatch.setenv(variable(name), written)

    assert getattr(load_settings(), name) == read


@pytest.mark.parametrize("name", GOOD)
def test_a_keyword_overrides_the_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Settings.model_fields[name].default
    written, read = GOOD[name]
    monkeypatch.setenv(variable(name), written)

    assert getattr(load_settings(**{name: default}), name) == default
    monkeypatch.delenv(variable(name))
    assert getattr(load_settings(**{name: read}), name) == read


@pytest.mark.parametrize("name", GOOD)
def test_an_empty_variable_is_no_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable(name), "")

    assert getattr(load_settings(), name) == Settings.model_fields[name].default


def test_the_intervention_of_every_generation() -> None:
    assert load_settings().intervention == Intervention()
    chosen = load_settings(intervene=["risk", "risk"], intervene_threshold=0.5)
    assert chosen.intervention == Intervention((Condition.RISK,), 0.5)


def test_settings_do_not_change() -> None:
    settings = load_settings()

    with pytest.raises(ValueError, match="frozen"):
        settings.top_k = 3  # type: ignore[misc]


@pytest.mark.parametrize(("name", "value", "accepted"), BAD)
def test_a_bad_variable_is_named_with_its_value_and_what_it_takes(
    name: str, value: str, accepted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable(name), value)

    with pytest.raises(SettingsError) as raised:
        load_settings()

    message = str(raised.value)
    assert message.startswith(f"{variable(name)}={value!r}: accepted")
    _, _, takes = message.partition("accepted")
    assert [text for text in accepted if text not in takes] == []


@pytest.mark.parametrize(("name", "value", "accepted"), BAD)
def test_a_bad_keyword_is_named_with_its_value_and_what_it_takes(
    name: str, value: str, accepted: tuple[str, ...]
) -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(**{name: value})

    message = str(raised.value)
    assert message.startswith(f"{name}={value!r}: accepted")
    _, _, takes = message.partition("accepted")
    assert [text for text in accepted if text not in takes] == []


@pytest.mark.parametrize(
    "keywords", [{"capture": None}, {"profile": 3}, {"top_k": 1.5}, {"capture_ratio": math.nan}]
)
def test_a_keyword_of_another_type_is_a_bad_one(keywords: dict[str, Any]) -> None:
    ((name, value),) = keywords.items()

    with pytest.raises(SettingsError, match=f"^{name}={value!r}: accepted"):
        load_settings(**keywords)


def test_an_unknown_keyword_is_named_with_all_there_are() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(captuer="off")

    message = str(raised.value)
    assert message.startswith("captuer: no such setting; accepted are")
    assert [name for name in Settings.model_fields if name not in message] == []


def test_one_message_names_all_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "all")
    monkeypatch.setenv("COREVITAL_TOP_K", "ten")

    with pytest.raises(SettingsError) as raised:
        load_settings(prompt_max_tokens=1)

    assert [
        part
        for part in ("COREVITAL_CAPTURE='all'", "COREVITAL_TOP_K='ten'", "prompt_max_tokens=1")
        if part not in str(raised.value)
    ] == []


def test_the_error_is_a_value_error_without_pydantic_in_its_traceback() -> None:
    with pytest.raises(ValueError, match="capture") as raised:
        load_settings(capture="all")

    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


def test_every_family_has_its_own_thresholds_unless_a_profile_is_set() -> None:
    assert load_settings().profile_of("llama") == named_profile("llama")
    assert load_settings(profile="gpt2").profile_of("llama") == named_profile("gpt2")


def profile_file(folder: Path, content: str) -> Path:
    file = folder / "mine.toml"
    file.write_text(content)
    return file


def test_a_profile_may_be_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = profile_file(tmp_path, "high_entropy_bits = 2.5")
    expected = Profile("mine", high_entropy_bits=2.5)

    assert load_settings(profile=file).profile_of("llama") == expected
    monkeypatch.setenv("COREVITAL_PROFILE", str(file))
    assert load_settings().profile_of("llama") == expected
    assert load_settings(high_entropy_bits=1.0).profile_of("llama").high_entropy_bits == 1.0


def test_a_profile_file_is_read_once(tmp_path: Path) -> None:
    file = profile_file(tmp_path, "high_entropy_bits = 2.5")
    settings = load_settings(profile=file)
    file.unlink()

    assert settings.profile_of("llama").high_entropy_bits == 2.5


def test_what_is_wrong_in_a_profile_file_is_named(tmp_path: Path) -> None:
    file = profile_file(tmp_path, "high_entropy_bits = 0")

    with pytest.raises(SettingsError) as raised:
        load_settings(profile=file)

    assert str(raised.value) == (
        f"profile={str(file)!r}: accepted are {', '.join(profile_names())} and the path of a TOML "
        "file with thresholds; its high_entropy_bits is 0, not a number above 0"
    )


def test_thresholds_can_be_overridden_one_by_one() -> None:
    settings = load_settings(l2_multiplier=3.0, high_entropy_bits=2.0, repetition_cosine=0.9)
    profile = settings.profile_of("llama")

    assert profile.l2_multiplier == 3.0
    assert profile.high_entropy_bits == 2.0
    assert profile.repetition_cosine == 0.9
    assert load_settings(l2_multiplier=3.0).profile_of("llama").high_entropy_bits == (
        named_profile("llama").high_entropy_bits
    )


@pytest.mark.parametrize(
    "given", [SMOLLM2, str(SMOLLM2), [SMOLLM2], [str(SMOLLM2)], (str(SMOLLM2),)]
)
def test_a_calibration_may_be_one_path_or_several(given: object) -> None:
    assert load_settings(calibration=given).calibration == (SMOLLM2,)


def test_calibrations_are_read_once() -> None:
    settings = load_settings(calibration=SMOLLM2)

    assert isinstance(settings.calibrations, Calibrations)
    assert settings.calibrations is settings.calibrations


def test_of_several_calibrations_the_bad_one_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text('{"kind": "baseline", "version": 2}')

    with pytest.raises(SettingsError) as raised:
        load_settings(calibration=[SMOLLM2, bad])

    assert str(raised.value) == (
        f"calibration={str(bad)!r}: accepted is a calibration file (its version 2 is newer "
        "than 1, the newest that is read here)"
    )


def test_levels_of_risk_must_not_descend() -> None:
    with pytest.raises(SettingsError) as raised:
        load_settings(risk_moderate=0.7)

    assert str(raised.value) == (
        "COREVITAL_RISK_MODERATE=0.7, COREVITAL_RISK_HIGH=0.6, COREVITAL_RISK_CRITICAL=0.85: "
        "accepted are values none of which is below the one before"
    )
