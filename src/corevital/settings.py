"""Settings: environment variables with the prefix ``COREVITAL_``, or keywords of ``instrument``."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from corevital.assess.profile import Profile, named_profile, profile_for, profile_names
from corevital.record import CaptureMode

_PREFIX = "COREVITAL_"


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
    profile: str | None = Field(
        None,
        description=f"Thresholds of a model family ({', '.join(profile_names())}) for every model; "
        "by default those of each model's own family.",
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
    span_processor: bool = Field(
        True, description="Whether CoreVital adds its span processor to the tracer provider."
    )

    def profile_of(self, family: str) -> Profile:
        """The thresholds for a model family, with the overrides applied."""
        base = profile_for(family) if self.profile is None else named_profile(self.profile)
        overrides = {
            name: value
            for name in ("l2_multiplier", "high_entropy_bits", "repetition_cosine")
            if (value := getattr(self, name)) is not None
        }
        return base.with_overrides(overrides)


def load_settings(**overrides: Any) -> Settings:
    """Settings from the environment and keywords.

    Raises:
        SettingsError: a variable or keyword is unknown or has a value that is not accepted; the
            message names each, its value and what is accepted.
    """
    try:
        settings = Settings(**overrides)
        settings.profile_of("default")
    except ValidationError as error:
        problems = [_problem(dict(detail), overrides) for detail in error.errors()]
        raise SettingsError("; ".join(problems)) from None
    except KeyError:
        name = _source("profile", overrides)
        raise SettingsError(
            f"{name}={settings.profile!r}: accepted are {', '.join(profile_names())}"
        ) from None
    return settings


def _source(field: str, overrides: dict[str, Any]) -> str:
    return field if field in overrides else f"{_PREFIX}{field.upper()}"


def _problem(detail: dict[str, Any], overrides: dict[str, Any]) -> str:
    field = str(detail["loc"][0]) if detail["loc"] else "settings"
    if detail["type"] == "extra_forbidden":
        return f"{field}: no such setting; accepted are {', '.join(Settings.model_fields)}"
    accepted = str(detail["msg"]).removeprefix("Input should be ").removeprefix("a ")
    if str(detail["type"]).startswith("bool"):
        accepted = "true or false"
    return f"{_source(field, overrides)}={detail['input']!r}: accepted is {accepted}"
