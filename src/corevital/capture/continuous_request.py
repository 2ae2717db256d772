"""What is seen of one request of a continuous batch, and the record that comes of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import nn

from corevital.capture.decoding import GenerateCall
from corevital.capture.observation import Interval
from corevital.capture.prompt_hash import prompt_hash
from corevital.capture.transfer import PendingCopy
from corevital.record import (
    Captured,
    CaptureMode,
    CaptureReport,
    GenerationRecord,
    LogitColumns,
    ModelDescription,
    StoppedEarly,
)

OFF: Final = "capture is off"
PACKED: Final = "continuous batching packs the tokens of several requests into one sequence"
_NO_TOKEN: Final = "no token was generated"

CANCELLED: Final = "cancelled"
ERROR: Final = "error"
LENGTH: Final = "length"
STOP: Final = "stop"


@dataclass(frozen=True, slots=True)
class RequestCall(GenerateCall):
    """A request to a manager, as if it were a call of ``generate`` with the one prompt."""

    prompt: list[int]

    def prompt_ids(self) -> list[list[int]]:
        """The request's prompt."""
        return [self.prompt]


@dataclass(frozen=True, slots=True)
class Ending:
    """How and when (``time.perf_counter_ns``) a request ended.

    ``finish_reason`` is ``None`` when observing ended before the request did.
    """

    counter_ns: int
    finish_reason: str | None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Where a token's statistics are: ``values`` ``[4, rows]``, on their way to the host."""

    values: PendingCopy
    row: int

    def read(self) -> NDArray[np.float32]:
        """The statistics of the token, ``[4]``; waits until they have arrived."""
        self.values.wait()
        return self.values.array()[:, self.row]


class RequestRun:
    """One request, from when it was added until it ends.

    Attributes:
        family: the ids of the requests that the manager forks off this one.
        token_ids: the accepted tokens.
        token_times_ns: when each was known, nanoseconds of ``time.perf_counter_ns``.
        unavailable: why its logits are not observed any more.
        failed_signals: the signals whose observation failed.
        seconds: this request's share of the time spent observing.
    """

    def __init__(
        self, call: RequestCall, mode: CaptureMode, on_end: Callable[[Ending], None]
    ) -> None:
        self.family: tuple[str, ...] = ()
        self.token_ids: list[int] = []
        self.token_times_ns: list[int] = []
        self.unavailable: str | None = OFF if mode is CaptureMode.OFF else None
        self.failed_signals: list[str] = []
        self.seconds = 0.0
        self._call = call
        self._mode = mode
        self._on_end = on_end
        self._rows: list[TokenRow] = []

    @property
    def observed(self) -> bool:
        """Whether the logits of its next token are to be reduced."""
        return self.unavailable is None

    @property
    def model(self) -> nn.Module:
        """The model that generates."""
        return self._call.model

    def token_accepted(self, token: int, counter_ns: int, row: TokenRow | None) -> None:
        """The request has got a token; ``row`` is ``None`` where its logits were not reduced."""
        self.token_ids.append(token)
        self.token_times_ns.append(counter_ns)
        if row is not None:
            self._rows.append(row)

    def end(self, finish_reason: str | None, error: BaseException | None = None) -> None:
        """The request is over."""
        self._on_end(Ending(time.perf_counter_ns(), finish_reason, error))

    @property
    def reason_to_finish(self) -> str:
        """Why a request that finished did so."""
        last = self.token_ids[-1:]
        return STOP if last and last[0] in self._call.end_tokens else LENGTH

    def stopped_early(self) -> list[StoppedEarly]:
        """Nothing: the stopping criteria that an intervention needs are not asked here."""
        return []

    def token_seconds(self, interval: Interval) -> NDArray[np.float64]:
        """Seconds from when the request was added to each token, ``[S]``."""
        times = np.asarray(self.token_times_ns, dtype=np.float64)
        return (times - interval.start_counter_ns) / 1e9

    def record(
        self, model: ModelDescription, interval: Interval, finish_reason: str | None
    ) -> GenerationRecord:
        """What is known of the request once it has ended."""
        started = time.perf_counter()
        logits = self._logit_columns()
        prompt = np.asarray(self._call.prompt, dtype=np.int64)
        times = [interval.at(counter) for counter in self.token_times_ns]
        record = GenerationRecord(
            model=model,
            capture=self._report(logits is not None),
            prompt_tokens=len(prompt),
            token_ids=np.asarray(self.token_ids, dtype=np.int64),
            step_time_ns=np.asarray(times, dtype=np.int64),
            start_time_ns=interval.start_time_ns,
            end_time_ns=interval.end_time_ns,
            logits=logits,
            finish_reason=finish_reason,
            prompt_hash=prompt_hash(model.name, prompt),
        )
        self.seconds += time.perf_counter() - started
        return record

    def _logit_columns(self) -> LogitColumns | None:
        if not self.observed or not self._rows:
            return None
        if len(self._rows) < len(self.token_ids):
            self.unavailable = "observing began after the first token"
            return None
        return LogitColumns(*np.stack([row.read() for row in self._rows], axis=1))

    def _report(self, has_logits: bool) -> CaptureReport:
        packed = Captured(False, OFF if self._mode is CaptureMode.OFF else PACKED)
        return CaptureReport(
            mode=self._mode,
            logits=Captured(has_logits, None if has_logits else self.unavailable or _NO_TOKEN),
            hidden=packed,
            attention=packed,
            prompt=packed,
            failures=len(self.failed_signals),
        )


def plain_ids(ids: Sequence[int]) -> list[int]:
    """Token ids as numbers; ``transformers`` 4.57 serves requests whose ids are tensors."""
    return [int(token) for token in ids]
