"""Settings: environment variables with the prefix ``COREVITAL_``, or keywords of ``instrument``."""

from __future__ import annotations

import os
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from corevital.assess.profile import Profile, load_profile, profile_for, profile_names
from corevital.assess.profile_file import ProfileError
from corevital.assess.risk import USUAL_LEVELS, RiskLevels
from corevital.calibration.load import CalibrationError, Calibrations
from corevital.intervention import USUAL_THRESHOLD, Condition, Intervention
from corevital.record import CaptureMode

_PREFIX = "COREVITAL_"
_UNORDERED_LEVELS = "unordered_levels"


class StepEvents(StrEnum):
    """Where the event of each step goes: the span, the log signal, both, or nowhere."""

    SPAN = "span"
    LOG = "log"
    BOTH = "both"
    NONE = "none"


class SettingsError(ValueError):
    """A setting has a value that is not accepted."""


class Settings(BaseSettings):
    """How CoreVital observes and what it sends.

    Every field is read from the environment variable ``COREVITAL_<FIELD>``; a keyword overrides it.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="forbid", env_ignore_empty=True
    )

    enabled: bool = Field(True, description="Whether generations are instrumented at all.")
    capture: CaptureMode = Field(
        CaptureMode.FULL,
        description=(
            "How much is observed: `full` (every layer, every step, the prompt), `summary` (logits "
            "and the last layer), `on_risk` (summary until a flag or early warning, then full), "
            "`off` (spans and timing only)."
        ),
    )
    capture_ratio: float = Field(
        1.0,
        ge=0.0,
        le=1.0,
        description="Share of the sampled traces whose generations are observed from inside.",
    )
    step_events: StepEvents = Field(
        StepEvents.SPAN, description="Where step events go: `span`, `log`, `both` or `none`."
    )
    prompt: bool = Field(True, description="Whether `full` capture observes the prompt.")
    prompt_max_tokens: int = Field(
        512, ge=2, description="Longest prompt, in tokens, that prompt telemetry reads."
    )
    top_k: int = Field(10, ge=1, le=1000, description="Tokens summed in the top-k mass.")
    profile: str | Path | None = Field(
        None,
        description="Thresholds for every model: those of a model family "
        f"({', '.join(profile_names())}), or of a TOML file; by default those of each model's own "
        "family.",
    )
    l2_multiplier: float | None = Field(
        None, gt=0.0, description="Overrides the profile's threshold of the mid-layer anomaly."
    )
    high_entropy_bits: float | None = Field(
        None,
        gt=0.0,
        description="Overrides the profile's threshold of a high-entropy step, in bits.",
    )
    repetition_cosine: float | None = Field(
        None, gt=0.0, le=1.0, description="Overrides the profile's threshold of a repetition."
    )
    risk_moderate: float = Field(
        USUAL_LEVELS.moderate,
        gt=0.0,
        lt=1.0,
        description="Risk score from which on it is moderate.",
    )
    risk_high: float = Field(
        USUAL_LEVELS.high, gt=0.0, lt=1.0, description="Risk score from which on it is high."
    )
    risk_critical: float = Field(
        USUAL_LEVELS.critical,
        gt=0.0,
        lt=1.0,
        description="Risk score from which on it is critical.",
    )
    calibration: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="Calibration files, separated as in `PATH`; each applies to the model that it "
        "was made for.",
    )
    intervene: Annotated[tuple[Condition, ...], NoDecode] = Field(
        (),
        description="What stops a generation early, separated by commas: `repetition` (the text is "
        "caught in a loop), `non_finite` (NaN or Inf), `risk` (the score has reached a threshold).",
    )
    intervene_threshold: float = Field(
        USUAL_THRESHOLD,
        gt=0.0,
        le=1.0,
        description="Risk score from which on `risk` stops a generation.",
    )
    intervene_raises: bool = Field(
        False,
        description="Whether a generation that is stopped raises `GenerationStopped` instead of "
        "returning a shorter result.",
    )
    span_processor: bool = Field(
        True, description="Whether CoreVital adds its span processor to the tracer provider."
    )

    @field_validator("calibration", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        """One path, several in a string, or a sequence of paths."""
        if isinstance(value, str):
            return tuple(part for part in value.split(os.pathsep) if part)
        return (value,) if isinstance(value, Path) else value

    @field_validator("intervene", mode="before")
    @classmethod
    def _conditions(cls, value: Any) -> Any:
        """One condition, several in a string, or a sequence of conditions."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @model_validator(mode="after")
    def _levels_ascend(self) -> Self:
        if not self.risk_moderate <= self.risk_high <= self.risk_critical:
            raise PydanticCustomError(
                _UNORDERED_LEVELS,
                "COREVITAL_RISK_MODERATE={moderate}, COREVITAL_RISK_HIGH={high}, "
                "COREVITAL_RISK_CRITICAL={critical}: accepted are values none of which is below "
                "the one before",
                {
                    "moderate": self.risk_moderate,
                    "high": self.risk_high,
                    "critical": self.risk_critical,
                },
            )
        return self

    @property
    def risk_levels(self) -> RiskLevels:
        """The scores from which on a risk has each level."""
        return RiskLevels(self.risk_moderate, self.risk_high, self.risk_critical)

    @property
    def intervention(self) -> Intervention:
        """What stops every generation that no block of `corevital.intervene` is around."""
        on = tuple(dict.fromkeys(self.intervene))
        return Intervention(on, self.intervene_threshold, self.intervene_raises)

    @cached_property
    def calibrations(self) -> Calibrations:
        """The content of the calibration files.

        Raises:
            CalibrationError: one of them cannot be used.
        """
        return Calibrations.read(self.calibration)

    def profile_of(self, family: str) -> Profile:
        """The thresholds for a model family, with the overrides applied."""
        base = self._chosen_profile or profile_for(family)
        overrides = {
            name: value
            for name in ("l2_multiplier", "high_entropy_bits", "repetition_cosine")
            if (value := getattr(self, name)) is not None
        }
        return base.with_overrides(overrides)

    @cached_property
    def _chosen_profile(self) -> Profile | None:
        """The profile of the setting, read once."""
        return None if self.profile is None else load_profile(str(self.profile))


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and keywords.

    Raises:
        SettingsError: a variable or keyword is unknown or has a value that is not accepted; the
            message names each, its value and what is accepted.
    """
    try:
        settings = Settings(**overrides)
        settings.profile_of("default")
        settings.calibrations.check_top_k(settings.top_k)
    except CalibrationError as error:
        name = _source("calibration", overrides)
        raise SettingsError(
            f"{name}={str(error.path)!r}: accepted is a calibration file ({error})"
        ) from None
    except ValidationError as error:
        problems = [_problem(dict(detail), overrides) for detail in error.errors()]
        raise SettingsError("; ".join(problems)) from None
    except ProfileError as error:
        name = _source("profile", overrides)
        raise SettingsError(
            f"{name}={str(settings.profile)!r}: accepted are {', '.join(profile_names())} and "
            f"the path of a TOML file with thresholds; {error}"
        ) from None
    return settings


def _source(field: str, overrides: dict[str, Any]) -> str:
    return field if field in overrides else f"{_PREFIX}{field.upper()}"


def _problem(detail: dict[str, Any], overrides: dict[str, Any]) -> str:
    if detail["type"] == _UNORDERED_LEVELS:
        return str(detail["msg"])
    field = str(detail["loc"][0]) if detail["loc"] else "settings"
    if detail["type"] == "extra_forbidden":
        return f"{field}: no such setting; accepted are {', '.join(Settings.model_fields)}"
    accepted = str(detail["msg"]).removeprefix("Input should be ").removeprefix("a ")
    if str(detail["type"]).startswith("bool"):
        accepted = "true or false"
    return f"{_source(field, overrides)}={detail['input']!r}: accepted is {accepted}"
