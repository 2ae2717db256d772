"""Observes the steps of a manager of continuous batching, and ties their rows to requests."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from corevital.capture.continuous_logits import BatchLogits
from corevital.capture.continuous_request import CANCELLED, ERROR, RequestRun, TokenRow
from corevital.capture.failure import is_own_failure
from corevital.capture.transfer import PendingCopy
from corevital.capture.unobservable import Unobservable

_logger: Final = logging.getLogger(__name__)
_already_logged: set[type[Exception]] = set()

LOGITS: Final = "logits"
_UNSEEN: Final = "the forward pass was not seen"


@dataclass(frozen=True, slots=True)
class ScheduledRow:
    """A request of a batch whose next token the batch predicts, and its place among such rows.

    ``state`` is the manager's own account of the request.
    """

    row: int
    request_id: str
    state: Any


@dataclass(frozen=True, slots=True)
class Schedule:
    """The requests that get a token of a batch, and how many tokens the batch computes."""

    rows: list[ScheduledRow]
    tokens: int


@dataclass(slots=True)
class BatchStep:
    """One batch, from its forward pass until its tokens are known to the manager."""

    rows: list[tuple[ScheduledRow, RequestRun]]
    statistics: PendingCopy | None = None
    reason: str = _UNSEEN
    seconds: float = 0.0


class BatchObserver:
    """Observes one manager: which requests it has, and what every batch gives each of them.

    Requests may be added in any thread; everything else happens in the manager's own. What fails
    here is logged once and counted for the requests concerned; the batches go on untouched.

    Attributes:
        requests: those that were added and have not ended, by the manager's ids.
        tokens_in_batch: how many tokens the last forward pass had.
    """

    def __init__(self, top_k: int, generated: Callable[[Any], list[int]]) -> None:
        """Take the number of tokens in the top-k mass, and how a state tells its tokens."""
        self.requests: dict[str, RequestRun] = {}
        self.tokens_in_batch = 0
        self._generated = generated
        self._logits = BatchLogits(top_k)
        self._steps: deque[BatchStep] = deque()

    def request_added(self, request_id: str, run: RequestRun) -> None:
        """A request is about to be given to the manager."""
        replaced = self.requests.pop(request_id, None)
        if replaced is not None:
            replaced.end(None)
        self.requests[request_id] = run

    def batch_begins(self, schedule: Callable[[], Schedule]) -> BatchStep | None:
        """A batch is about to be computed; the step, if its logits are to be reduced."""
        step = BatchStep([])
        try:
            scheduled = schedule()
            self.tokens_in_batch = scheduled.tokens
            for row in scheduled.rows:
                run = self.requests.get(row.request_id)
                if run is not None:
                    step.rows.append((row, run))
        except Exception as error:
            self._failed(error, [run for _, run in step.rows])
        self._steps.append(step)
        return step if any(run.observed for _, run in step.rows) else None

    def batch_computed(self, step: BatchStep, rows: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """A batch has been computed, perhaps not yet by the device.

        ``rows`` gives its raw logits ``[n, V]`` and tokens ``[n]``; it may raise
        :class:`Unobservable`.
        """
        started = time.perf_counter()
        try:
            step.statistics = self._logits.reduce(*rows())
        except Unobservable as reason:
            step.reason = str(reason)
        except Exception as error:
            self._failed(error, [run for _, run in step.rows])
        step.seconds = time.perf_counter() - started

    def update(self, update_batch: Callable[[], Any]) -> Any:
        """Let the manager take the tokens of the oldest batch that is under way, and look on."""
        step = self._steps.popleft() if self._steps else None
        before: list[tuple[int, bool]] = []
        try:
            if step is not None:
                before = [self._progress(row.state) for row, _ in step.rows]
        except Exception as error:
            self._failed(error, [run for _, run in step.rows] if step is not None else [])
            step = None
        result = update_batch()
        if step is not None:
            try:
                self._take_tokens(step, before, time.perf_counter_ns())
            except Exception as error:
                self._failed(error, [run for _, run in step.rows])
        return result

    def _progress(self, state: Any) -> tuple[int, bool]:
        """How many tokens a request has, and whether it needs no more."""
        return len(self._generated(state)), state.status.name == "FINISHED"

    def _take_tokens(
        self, step: BatchStep, before: Sequence[tuple[int, bool]], counter_ns: int
    ) -> None:
        for (row, run), (tokens_before, was_finished) in zip(step.rows, before, strict=True):
            tokens, finished = self._progress(row.state)
            if tokens > tokens_before:
                token = int(self._generated(row.state)[-1])
                self._take_token(step, row, run, token, counter_ns)
            # The state of a request that was put back to wait had finished before.
            if finished and not was_finished and self.requests.get(row.request_id) is run:
                self.request_ended(row.request_id, run.reason_to_finish)

    def _take_token(
        self, step: BatchStep, row: ScheduledRow, run: RequestRun, token: int, counter_ns: int
    ) -> None:
        statistics = None
        if step.statistics is not None:
            statistics = TokenRow(step.statistics, row.row)
        elif run.observed:
            run.unavailable = step.reason
        run.seconds += step.seconds / len(step.rows)
        run.token_accepted(token, counter_ns, statistics)

    def request_ended(
        self, request_id: str, finish_reason: str | None, error: BaseException | None = None
    ) -> None:
        """A request finished, failed, or was cancelled.

        What would have been forked off it ends with it, unless it has begun.
        """
        run = self.requests.pop(request_id, None)
        if run is None:
            return
        run.end(finish_reason, error)
        if finish_reason in (ERROR, CANCELLED):
            for child in run.family:
                forked = self.requests.get(child)
                if forked is not None and not forked.token_ids:
                    self.request_ended(child, finish_reason, error)

    def loop_begins(self) -> None:
        """The manager begins to generate: no batch is under way."""
        self._steps.clear()

    def loop_ends(self) -> None:
        """The manager generates no more; what it has not finished never will be."""
        for request_id in list(self.requests):
            self.request_ended(request_id, None)
        self._steps.clear()
        self.tokens_in_batch = 0

    def _failed(self, error: Exception, runs: Iterable[RequestRun]) -> None:
        if not is_own_failure(error):
            raise error
        for run in runs:
            if run.observed:
                run.unavailable = f"{type(error).__name__}: {error}"[:200]
                run.failed_signals.append(LOGITS)
        if type(error) not in _already_logged:
            _already_logged.add(type(error))
            _logger.warning("Observing a batch failed; the batches go on.", exc_info=error)


active_batches: ContextVar[BatchObserver | None] = ContextVar(
    "corevital_active_batches", default=None
)
"""Set in the thread of a manager that is observed."""
