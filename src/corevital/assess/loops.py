"""Loops: phrases of up to 64 tokens that a generation repeats, wherever in its text.

A loop of period p is a stretch in which every token equals the one p tokens before. Ordinary text
has short ones: constant rows of a table, a row of dashes, a refrain. Two things tell a loop from
these. It goes on: a stretch counts from 96 tokens and three copies of the phrase on, so that a
short period needs more repeats. And the model is caught in it: over a whole period, and 32 tokens
at least, each last-layer state has a cosine of 0.98 or more to the one of a period before. Where
the states are not known, or not alike, a stretch twice as long counts on its own.

The definition and its thresholds are CoreVital's own, from greedy loops of SmolLM2-135M-Instruct
and from lists, tables, code, numbers, verse and legal text. In the second copy of a phrase the
least cosine is between 0.3 and 0.98, in the third mostly below 0.98, from the fifth on above it,
whoever wrote the text: three copies of a verse are no loop, five are. Data that repeats one row or
one value for longer than 96 tokens is a loop too. A text that changes a word in each copy, as a
numbered list does, is none.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain, repeat
from typing import Final

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from corevital.record import LAGS, Bools, GenerationRecord, Ints

LEAST_TOKENS: Final = 96
LEAST_REPEATS: Final = 3
LEAST_TOKENS_ALIKE: Final = 32
ALIKE_COSINE: Final = 0.98
WITHOUT_STATES: Final = 2
NEWEST_TOKENS: Final = 384
"""A loop is at most so long when it is found."""

_PERIODS: Final = np.arange(1, LAGS + 1)
_LENGTH: Final = np.maximum(LEAST_TOKENS, LEAST_REPEATS * _PERIODS)
_ALIKE: Final = np.maximum(LEAST_TOKENS_ALIKE, _PERIODS)
_LENGTH_ALONE: Final = WITHOUT_STATES * _LENGTH
_LEAST_EQUAL: Final = _LENGTH - _PERIODS
_BLOCK: Final = int(_LEAST_EQUAL.min() + 1) // 2
_GLANCE: Final = 8
_NO_TOKEN: Final = np.iinfo(np.int64).min


@dataclass(frozen=True, slots=True)
class Loop:
    """A phrase that is repeated.

    ``onset_step`` is the step of the first token of its first copy, ``period`` the tokens of the
    phrase, ``length`` all tokens of the loop, an unfinished last copy included. ``end_step`` is the
    step whose token broke off, one past the loop's last; ``None`` when the text ended inside it.
    """

    onset_step: int
    period: int
    length: int
    end_step: int | None = None

    @property
    def repeats(self) -> int:
        """How many complete copies of the phrase there are, the first included."""
        return self.length // self.period


class LoopDetector:
    """Finds loops while a text is generated, at a cost for each token that does not grow with it.

    Attributes:
        loop: the loop that the newest token belongs to; ``None`` outside of any.
        ended: loops that have ended, in order. None lies inside another: both periods would hold in
            the inner one, and over the length of a loop that makes them one.
    """

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self.ended: list[Loop] = []
        self._step = 0
        # By lag, newest first: the tokens, how many in a row have equalled the one a lag before,
        # and how many have had a state like that one's.
        self._recent = np.full(LAGS, _NO_TOKEN, dtype=np.int64)
        self._equal = np.zeros(LAGS, dtype=np.int64)
        self._alike = np.zeros(LAGS, dtype=np.int64)

    def update(self, token_id: int, lag_cosine: NDArray[np.floating] | None = None) -> Loop | None:
        """Take the next token, and return the loop that it belongs to, if any.

        Args:
            token_id: the token of this step.
            lag_cosine: ``[LAGS]``, cosine of this step's last-layer state to those of the steps
                before, newest first; NaN where it is not known.
        """
        same = self._recent == token_id
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token_id
        self._equal += 1
        self._equal *= same
        self._alike += 1
        self._alike *= False if lag_cosine is None else lag_cosine >= ALIKE_COSINE
        if self.loop is not None and not same[self.loop.period - 1]:
            self.ended.append(replace(self.loop, end_step=self._step))
            self.loop = None
        self._step += 1
        if self.loop is not None:
            loop = self.loop
            self.loop = Loop(loop.onset_step, loop.period, loop.length + 1)
        elif (period := self._period()) is not None:
            length = int(self._equal[period - 1]) + period
            self.loop = Loop(self._step - length, period, length)
        return self.loop

    def _period(self) -> int | None:
        """The period of the loop that has just become one, the smallest of a stretch."""
        if not np.count_nonzero(self._equal >= _LEAST_EQUAL):
            return None
        found = np.flatnonzero(_makes_loop(self._equal, self._alike))
        return int(_PERIODS[found[0]]) if len(found) else None


def caught_in_loop(
    token_ids: Ints, lag_cosine: NDArray[np.floating] | None = None
) -> tuple[Bools, Bools]:
    """Which of several texts are caught in a loop at their last token, and which may soon be.

    The same loops as those of `LoopDetector`, told from the end of the text alone.

    Args:
        token_ids: ``[B, n]``, newest last; the newest `NEWEST_TOKENS` are enough.
        lag_cosine: ``[m, B, LAGS]`` of the newest ``m`` steps, newest last; ``LAGS`` are enough.
            Without it, only what counts as a loop whatever the states is found.

    Returns:
        Two arrays ``[B]``: whether there is a loop, and whether the states of this or the next step
        can make one.
    """
    rows = len(token_ids)
    if token_ids.shape[1] < LEAST_TOKENS - 1 or not _newest_repeat(token_ids):
        return np.zeros(rows, dtype=np.bool_), np.zeros(rows, dtype=np.bool_)
    equal = _run_at_end(_equal_before(token_ids))
    alike = np.zeros_like(equal)
    if lag_cosine is not None:
        alike = _run_at_end(np.moveaxis(lag_cosine >= ALIKE_COSINE, 1, 0))
    near = equal >= _LEAST_EQUAL - 1
    return np.any(_makes_loop(equal, alike), axis=1), np.any(near, axis=1)


def _makes_loop(equal: Ints, alike: Ints) -> Bools:
    """By lag ``[..., LAGS]``: whether so many equal tokens and alike states in a row are a loop."""
    length = equal + _PERIODS
    loop: Bools = (length >= _LENGTH) & (alike >= _ALIKE) | (length >= _LENGTH_ALONE)
    # A multiple of a period is one too, over the same stretch: only the smallest counts.
    loop[..., 1:] &= length[..., 1:] > np.maximum.accumulate(length, axis=-1)[..., :-1]
    return loop


def _newest_repeat(token_ids: Ints) -> bool:
    """Whether the newest tokens of any text repeat earlier ones: mostly not, and quick to tell."""
    newest = token_ids.shape[1] - 1
    repeat = np.ones((len(token_ids), LAGS), dtype=np.bool_)
    for at in range(newest, newest - _GLANCE, -1):
        repeat &= token_ids[:, at - LAGS : at] == token_ids[:, at : at + 1]
        if not repeat.any():
            return False
    return True


def _equal_before(token_ids: Ints) -> Bools:
    """Which tokens equal the one a lag before, ``[B, n, LAGS]``."""
    nothing = np.full((len(token_ids), LAGS), _NO_TOKEN)
    before = sliding_window_view(np.concatenate((nothing, token_ids), axis=1), LAGS, axis=1)
    equal: Bools = before[:, :-1, ::-1] == token_ids[:, :, np.newaxis]
    return equal


def _run_at_end(holds: Bools) -> Ints:
    """How often in a row something holds at the end of ``[B, n, LAGS]``, ``[B, LAGS]``."""
    run: Ints = np.argmin(holds[:, ::-1], axis=1)
    run[holds.all(axis=1)] = holds.shape[1]
    return run


def find_loops(record: GenerationRecord) -> tuple[Loop, ...]:
    """The loops of ``record``, in order; two overlap by less than the sum of their periods."""
    if not _may_loop(record.token_ids):
        return ()
    detector = LoopDetector()
    lag_cosine = None if record.hidden is None else record.hidden.lag_cosine
    states = chain(() if lag_cosine is None else lag_cosine, repeat(None))
    for token_id, cosines in zip(record.token_ids.tolist(), states, strict=False):
        detector.update(token_id, cosines)
    return (*detector.ended, *([] if detector.loop is None else [detector.loop]))


def _may_loop(token_ids: Ints) -> bool:
    """Whether there may be a loop; for most texts there is none, and this is far quicker to tell.

    Whatever its period, all tokens of a loop but the first copy's contain a whole block.
    """
    blocks = len(token_ids) // _BLOCK
    ids = token_ids[: blocks * _BLOCK]
    before = np.concatenate((np.full(LAGS, _NO_TOKEN), ids))
    equal = sliding_window_view(before, LAGS)[:-1] == ids[:, np.newaxis]
    return bool(equal.reshape(blocks, _BLOCK, LAGS).all(axis=1).any())


def longest_loop(loops: Iterable[Loop]) -> Loop | None:
    """The loop with the most tokens, the first of equals; ``None`` when there is none."""
    return max(loops, key=lambda loop: loop.length, default=None)
