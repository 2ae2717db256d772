"""Stopping a generation early: what for, and what the caller gets."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager as Block

    from torch import Tensor

USUAL_THRESHOLD: Final = 0.9


class Condition(StrEnum):
    """What a generation can be stopped for."""

    REPETITION = "repetition"
    NON_FINITE = "non_finite"
    RISK = "risk"


@dataclass(frozen=True, slots=True)
class Intervention:
    """Stop a generation when one of the conditions ``on`` holds.

    ``threshold`` is the risk score, above 0 and at most 1, from which on ``risk`` holds. With
    ``raises`` the caller gets `GenerationStopped` instead of the shorter result.
    """

    on: tuple[Condition, ...] = ()
    threshold: float = USUAL_THRESHOLD
    raises: bool = False


class GenerationStopped(Exception):
    """A generation was stopped, and the caller had asked for an exception.

    Attributes:
        reason: ``repetition``, ``non_finite`` or ``risk``.
        step: the zero-based step whose token was the last.
        input_ids: ``[B, prompt + S]``, what ``generate`` would have returned as sequences; of an
            encoder-decoder model the decoder's tokens.
    """

    def __init__(self, reason: str, step: int, input_ids: Tensor) -> None:
        super().__init__(reason, step, input_ids)
        self.reason = reason
        self.step = step
        self.input_ids = input_ids

    def __str__(self) -> str:
        return f"the generation was stopped after step {self.step}: {self.reason}"


_chosen: ContextVar[Intervention | None] = ContextVar("corevital_intervention", default=None)


class _Process:
    """What is known in the whole process."""

    instrumented = False
    warned = False


def chosen_intervention() -> Intervention | None:
    """That of the innermost `intervene` block around the caller; ``None`` outside of any."""
    return _chosen.get()


def mark_instrumented(active: bool) -> None:
    """Note whether generations are instrumented, without which `intervene` does nothing."""
    _Process.instrumented = active


def intervene(
    on: str | Iterable[str], *, threshold: float = USUAL_THRESHOLD, raises: bool = False
) -> Block[None]:
    """Stop what is generated inside the block early, for the block's own reasons only.

    A context manager, and a decorator of functions. It replaces the setting and any block around
    it; ``intervene(on=())`` switches intervention off inside. It holds in the current thread or
    task: a new thread needs a block of its own.

    Args:
        on: one or several of ``repetition`` (the text is caught in a loop), ``non_finite`` (NaN or
            Inf in the next-token logits) and ``risk`` (the risk score so far has reached
            ``threshold``).
        threshold: above 0 and at most 1.
        raises: raise `GenerationStopped` from ``generate`` instead of returning a shorter result.

    Raises:
        ValueError: an argument is not accepted.
    """
    return _inside(Intervention(_conditions(on), _threshold(threshold), bool(raises)))


@contextmanager
def _inside(intervention: Intervention) -> Iterator[None]:
    if intervention.on and not _Process.instrumented and not _Process.warned:
        _Process.warned = True
        warnings.warn(
            "corevital.intervene stops nothing until CoreVitalInstrumentor().instrument() is "
            "called",
            RuntimeWarning,
            stacklevel=3,
        )
    token = _chosen.set(intervention)
    try:
        yield
    finally:
        _chosen.reset(token)


def _conditions(on: str | Iterable[str]) -> tuple[Condition, ...]:
    given = (on,) if isinstance(on, str) else on
    try:
        return tuple(dict.fromkeys(Condition(each) for each in given))
    except (TypeError, ValueError):
        accepted = ", ".join(Condition)
        raise ValueError(f"on={on!r}: accepted are {accepted}, or several of them") from None


def _threshold(value: float) -> float:
    try:
        accepted = 0.0 < value <= 1.0
    except TypeError:
        accepted = False
    if not accepted:
        raise ValueError(f"threshold={value!r}: accepted is a number above 0 and at most 1")
    return float(value)
