"""What all calibration files have in common."""

from __future__ import annotations

from collections.abc import Collection

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    FiniteFloat,
    NonNegativeInt,
    PositiveInt,
)

from corevital.calibration.identity import ModelIdentity
from corevital.record import CaptureMode


def one_of(accepted: Collection[str]) -> AfterValidator:
    """Accepts these names only; a ``Literal`` of names that are known at run time."""

    def check(name: str) -> str:
        if name not in accepted:
            raise ValueError(f"{name!r} is none of {', '.join(accepted)}")
        return name

    return AfterValidator(check)


class Part(BaseModel):
    """A part of a calibration file: immutable, and without fields that are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Conditions(Part):
    """How the runs were made: what a run should have in common with them to be compared."""

    prompts: str
    chat_template: bool
    max_new_tokens: PositiveInt
    temperature: FiniteFloat | None = None
    top_k: PositiveInt | None = None
    top_p: FiniteFloat | None = None
    seed: NonNegativeInt | None = None
    device: str
    dtype: str


class Capture(Part):
    """How the runs were observed; ``top_k`` tokens are summed in the top-k mass."""

    mode: CaptureMode
    top_k: PositiveInt


class CalibrationContent(Part):
    """What every calibration file says first: its kind, and from which runs it was made."""

    kind: str
    version: int
    model: ModelIdentity
    conditions: Conditions
    capture: Capture
    created: str
    created_with: dict[str, str]
    runs: PositiveInt
