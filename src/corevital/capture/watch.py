"""Watches a generation while it goes on, and decides which of its sequences are to be stopped."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from corevital.capture.columns import RunColumns
from corevital.capture.decoding import Decoding, GenerateCall, decoding_of, is_list
from corevital.capture.division import is_divided
from corevital.capture.plan import InterventionPlan
from corevital.capture.run import GenerationRun
from corevital.capture.snapshot import HostCopies, Snapshot
from corevital.capture.transfer import PendingCopy, moved
from corevital.capture.unobservable import Unobservable
from corevital.intervention import Condition
from corevital.record import (
    LAGS,
    Bools,
    Captured,
    CaptureMode,
    CaptureReport,
    GenerationRecord,
    Ints,
    ModelDescription,
    StoppedEarly,
)

FIRST_RISK_STEP: Final = 16
LEAST_RISK_INTERVAL: Final = 8
RISK_INTERVALS: Final = 16
"""The next estimate of the risk comes after this part of the steps so far: a mean over all of them
hardly changes sooner."""

_SEEN: Final = Captured(available=True)
_NOTHING_SEEN: Final = "nothing was seen in the forward pass"
_ENCODER: Final = "the calibrated risk of an encoder-decoder is told at its end only"
_IN_PROGRESS: Final = CaptureReport(CaptureMode.SUMMARY, _SEEN, _SEEN, _SEEN, _SEEN)


def no_stopping_criteria(call: GenerateCall) -> str | None:
    """Why ``generate`` cannot be stopped by a stopping criterion in this call."""
    if call.own:
        # What it makes of the tokens may need all of them.
        return "the model's own generate"
    if decoding_of(call) is Decoding.CUSTOM:
        return "custom generate"
    if call.setting("penalty_alpha") or call.setting("dola_layers"):
        return "contrastive decoding"
    if call.setting("cache_implementation") == "paged":
        return "continuous batching"
    if not is_list(call.arguments.get("stopping_criteria")):
        return "stopping criteria that are not a list"
    if is_divided(call.model):
        # The others would wait for this one, or go on with what it no longer computes.
        return "processes share the model, and none can stop alone"
    return None


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one call of the criterion saw, on its way to the host.

    ``token_ids`` ``[B, n]`` ends with the ``new`` tokens since the call before.
    """

    step: int
    new: int
    token_ids: PendingCopy
    non_finite: PendingCopy | None
    lag_cosine: PendingCopy | None
    snapshot: Snapshot | None

    @property
    def arrived(self) -> bool:
        copies = (self.token_ids, self.non_finite, self.lag_cosine)
        return all(copy is None or copy.arrived for copy in copies) and (
            self.snapshot is None or self.snapshot.arrived
        )


class InterventionWatch:
    """Looks at a run after every token.

    On an accelerator, values reach the host while the next step is computed, so that what is told
    there acts one step late; the host never waits. NaN and Inf act at once, on the device.

    Attributes:
        stopped: by row, why and after which step it was stopped. Where rows are no sequences, all
            are stopped together, when NaN or Inf is in every row; the first stands for them.
        unwatched: why conditions that were asked for cannot be told.
    """

    def __init__(
        self,
        plan: InterventionPlan,
        model: ModelDescription,
        *,
        end_tokens: Collection[int],
        unwatched: dict[Condition, str],
        rows_are_sequences: bool,
        drafts_tokens: bool,
        prompt_length: int | None,
    ) -> None:
        self.stopped: dict[int, StoppedEarly] = {}
        self.unwatched = unwatched
        self._plan = plan
        self._model = model
        self._end_tokens = np.asarray(list(end_tokens), dtype=np.int64)
        self._separate = rows_are_sequences
        self._drafts = drafts_tokens
        self._non_finite: Tensor | None = None
        self._newest = 1
        self._prompt_length = prompt_length
        self._prompt = self._width = self._end = 0
        self._over = self._looped = np.zeros(0, dtype=np.bool_)
        self._near_loop = False
        self._next_risk_step = FIRST_RISK_STEP
        self._queue: deque[_Seen] = deque()
        self._copies = HostCopies()

    def _watches(self, condition: Condition) -> bool:
        return condition in self._plan.intervention.on and condition not in self.unwatched

    def prompt_is(self, length: int) -> None:
        """So many tokens of a sequence are there before the first that is generated."""
        self._prompt_length = length

    def see(self, output: Any) -> None:
        """Take what a forward pass returned, with logits ``[B, Q, V]``."""
        if self._watches(Condition.NON_FINITE):
            logits: Tensor = output.logits
            # Of NaN and +inf the largest value is not below infinity; -inf is a token's right.
            self._non_finite = ~(logits[:, -1].amax(-1) < math.inf)

    def decide(self, run: GenerationRun, input_ids: Tensor) -> Tensor | None:
        """Which rows of ``input_ids`` ``[B, prompt + S]`` are to be stopped now.

        Returns:
            ``[B]``, boolean, on the device; ``None`` when no row is.

        Raises:
            Unobservable: the rows are not those of the steps before.
        """
        rows, width = input_ids.shape
        if not self._width:
            self._begin(rows, width)
        elif rows != len(self._over):
            raise Unobservable("the number of sequences changes while they are generated")
        end = self._accepted(run, width)
        step = end - self._prompt - 1
        non_finite = self._non_finite_rows(rows, input_ids.device)
        self._queue.append(self._seen(run, input_ids[:, :end], step, non_finite))
        self._width, self._end = width, end
        while self._queue and self._queue[0].arrived:
            self._judge(self._queue.popleft(), step)
        known = self._known_rows(input_ids.device)
        if non_finite is None or not self._queue:
            return known
        return non_finite if known is None else non_finite | known

    def of(self, row: int) -> StoppedEarly | None:
        """What stopped the sequence in a row of the result."""
        return self.stopped.get(row if self._separate else 0)

    def finish(self) -> None:
        """Learn what acted on the device alone, once the generation is over."""
        while self._queue:
            seen = self._queue.popleft()
            if seen.non_finite is not None:
                seen.token_ids.wait()
                seen.non_finite.wait()
                self._stop(seen.non_finite.tensor.numpy(), Condition.NON_FINITE, seen.step)
                self._end_rows(seen)
        self._copies = HostCopies()

    def _begin(self, rows: int, width: int) -> None:
        self._prompt = width - 1 if self._prompt_length is None else self._prompt_length
        self._width = self._end = self._prompt
        self._over, self._looped = np.zeros((2, rows), dtype=np.bool_)
        repetition = self._watches(Condition.REPETITION) or self._watches(Condition.RISK)
        self._newest = self._plan.newest_tokens if repetition else 1
        if self._watches(Condition.NON_FINITE) and self._non_finite is None:
            self.unwatched[Condition.NON_FINITE] = _NOTHING_SEEN

    def _accepted(self, run: GenerationRun, width: int) -> int:
        """How many tokens of the criterion's are there to stay.

        Of assisted decoding, releases of ``transformers`` before 5 ask about drafts too.
        """
        if not self._drafts:
            return width
        if run.input_ids is not None:
            return run.input_ids.shape[1]
        return min(self._width, width)

    def _non_finite_rows(self, rows: int, device: torch.device) -> Tensor | None:
        found, self._non_finite = self._non_finite, None
        if found is None:
            return None
        if found.shape[0] != rows or not self._separate:
            found = found.all().expand(rows)
        return moved(found, device)

    def _known_rows(self, device: torch.device) -> Tensor | None:
        """The rows that are known on the host to be stopped."""
        if not self.stopped:
            return None
        rows = torch.zeros(len(self._over), dtype=torch.bool, pin_memory=device.type == "cuda")
        together = self._plan.intervention.raises or not self._separate
        rows[slice(None) if together else list(self.stopped)] = True
        return moved(rows, device)

    def _seen(
        self, run: GenerationRun, input_ids: Tensor, step: int, non_finite: Tensor | None
    ) -> _Seen:
        width = input_ids.shape[1]
        new = max(width - self._end, 1)
        start = max(self._prompt, width - max(self._newest, new))
        return _Seen(
            step,
            new,
            PendingCopy(input_ids[:, start:]),
            None if non_finite is None else PendingCopy(non_finite),
            self._newest_cosines(run) if self._near_loop else None,
            self._snapshot(run, step + 1) if step + 1 >= self._next_risk_step else None,
        )

    def _newest_cosines(self, run: GenerationRun) -> PendingCopy | None:
        """Those of the newest steps, ``[m, B, LAGS]``; ``None`` if the newest has none."""
        if not self._separate:
            return None
        run.reduce_states()
        chunks, cosines = run.hidden.chunks, run.hidden.lag_cosines
        if not cosines or chunks[-1].steps[-1] != run.steps - 1:
            return None
        # Each of the chunks has one step at least.
        return PendingCopy(torch.cat(cosines[-LAGS:])[-LAGS:])

    def _snapshot(self, run: GenerationRun, steps: int) -> Snapshot | None:
        self._next_risk_step = steps + max(LEAST_RISK_INTERVAL, steps // RISK_INTERVALS)
        if not self._watches(Condition.RISK):
            return None
        if run.encoder is not None and self._plan.needs_layers:
            self.unwatched[Condition.RISK] = _ENCODER
            return None
        run.reduce_so_far(attention=self._plan.needs_layers)
        if "logits" in run.signals.unavailable:
            self.unwatched[Condition.RISK] = run.signals.unavailable["logits"]
            return None
        return Snapshot(run, self._copies, layers=self._plan.needs_layers)

    def _judge(self, seen: _Seen, now: int) -> None:
        token_ids: Ints = seen.token_ids.tensor.numpy()
        if seen.non_finite is not None:
            self._stop(seen.non_finite.tensor.numpy(), Condition.NON_FINITE, seen.step)
        # Only now: a token chosen by NaN may happen to be one that ends the text.
        self._end_rows(seen)
        if self._newest > 1:
            cosines = None if seen.lag_cosine is None else seen.lag_cosine.array()
            caught, near = self._plan.caught_in_loop(token_ids, cosines)
            self._near_loop = bool(near.any())
            self._looped |= caught
            if self._watches(Condition.REPETITION):
                self._stop(caught, Condition.REPETITION, now)
        if seen.snapshot is not None and (columns := seen.snapshot.columns()) is not None:
            self._stop(self._risky(columns), Condition.RISK, now)

    def _end_rows(self, seen: _Seen) -> None:
        if self._separate:
            newest: Ints = seen.token_ids.tensor.numpy()[:, -seen.new :]
            self._over |= (newest[:, :, np.newaxis] == self._end_tokens).any(axis=(1, 2))

    def _stop(self, holds: Bools, condition: Condition, step: int) -> None:
        if not self._separate:
            holds = np.arange(len(holds)) == (0 if holds.all() else -1)
        for row in np.flatnonzero(holds & ~self._over).tolist():
            self.stopped[row] = StoppedEarly(condition.value, step)
            self._over[row] = True

    def _risky(self, columns: RunColumns) -> Bools:
        risky = np.zeros(len(self._over), dtype=np.bool_)
        if columns.logits is None:
            self.unwatched[Condition.RISK] = _NOTHING_SEEN
            return risky
        for row in np.flatnonzero(~self._over).tolist():
            score = self._plan.risk(self._record(columns, row), bool(self._looped[row]))
            risky[row] = score >= self._plan.intervention.threshold
        return risky

    def _record(self, columns: RunColumns, row: int) -> GenerationRecord:
        steps = columns.token_ids.shape[1]
        return GenerationRecord(
            model=self._model,
            capture=_IN_PROGRESS,
            prompt_tokens=int(columns.prompt_tokens[row]),
            token_ids=columns.token_ids[row],
            step_time_ns=np.zeros(steps, dtype=np.int64),
            start_time_ns=0,
            end_time_ns=0,
            logits=columns.logit_columns(row, steps),
            hidden=columns.hidden_columns(row, steps),
            attention=columns.attention_columns(row, steps),
            prompt=columns.prompt[row],
        )
