"""What one run gave, for the reports to show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corevital.assess.assessment import Assessment
from corevital.assess.narrative import narrative
from corevital.record import GenerationRecord


@dataclass(frozen=True, slots=True)
class Outcome:
    """A generated text and what was observed of it.

    ``token_texts`` are those of the record's tokens, one by one. ``high_entropy_bits`` is the
    threshold that applied. ``capture_seconds`` is the time that CoreVital took for itself.
    """

    record: GenerationRecord
    assessment: Assessment | None
    trace_id: str
    span_id: str
    prompt: str
    prompt_tokens: int
    is_chat: bool
    text: str
    token_texts: tuple[str, ...]
    device: str
    dtype: str
    high_entropy_bits: float
    capture_seconds: float | None
    interrupted: bool = False

    @property
    def duration(self) -> float:
        """Seconds that ``generate`` took."""
        return (self.record.end_time_ns - self.record.start_time_ns) / 1e9

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds from the call of ``generate`` to the first token."""
        if not self.record.steps:
            return None
        return (int(self.record.step_time_ns[0]) - self.record.start_time_ns) / 1e9

    @property
    def tokens_per_second(self) -> float | None:
        """The rate of all tokens but the first, which took the prompt's time too."""
        if self.record.steps < 2:
            return None
        elapsed = int(self.record.step_time_ns[-1]) - int(self.record.step_time_ns[0])
        return (self.record.steps - 1) * 1e9 / elapsed if elapsed > 0 else None

    @property
    def finish_reason(self) -> str | None:
        """Why the text ended: ``stop``, ``length`` or ``interrupted``; ``None`` if unknown."""
        return "interrupted" if self.interrupted else self.record.finish_reason

    @property
    def narrative(self) -> str | None:
        """The assessment in words, with its tokens; ``None`` when nothing was observed."""
        if self.assessment is None:
            return None
        return narrative(self.record, self.assessment, self.token_texts)

    def most_surprising(self, count: int, at_least_bits: float) -> list[int]:
        """Up to ``count`` steps whose token was the least expected, the least expected first."""
        if self.record.logits is None:
            return []
        surprisal = np.nan_to_num(self.record.logits.surprisal, nan=0.0, posinf=0.0)
        order = np.argsort(-surprisal, kind="stable")[:count]
        return [int(step) for step in order if surprisal[step] >= at_least_bits]


def finite_mean(values: NDArray[np.floating] | None) -> float | None:
    """The mean of the finite values; ``None`` when there are none."""
    finite = _finite(values)
    return float(finite.mean()) if finite.size else None


def finite_max(values: NDArray[np.floating] | None) -> float | None:
    """The largest of the finite values; ``None`` when there are none."""
    finite = _finite(values)
    return float(finite.max()) if finite.size else None


def _finite(values: NDArray[np.floating] | None) -> NDArray[np.float64]:
    known = np.empty(0) if values is None else np.asarray(values, dtype=np.float64)
    return known[np.isfinite(known)]
