"""Next-token statistics from the model's raw logits."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import MOST_STEPS, bytes_together, steps_together
from corevital.capture.run_memory import RunMemory
from corevital.capture.step_rows import StepRows
from corevital.capture.transfer import moved
from corevital.capture.unobservable import Unobservable

LN2: Final = math.log(2.0)
_BLOCK: Final = 128
# Stands for -inf: its probability is exactly 0 and 0 * it is 0, while 0 * -inf is NaN.
_IMPOSSIBLE: Final = -1e30


def logit_statistics(
    logits: Tensor, token_ids: Tensor, top_k: int, scratch: Tensor | None = None
) -> Tensor:
    """Entropy, surprisal, margin and top-k mass of next-token distributions.

    Args:
        logits: ``[..., V]``, float32; -inf marks impossible tokens and is overwritten.
        token_ids: ``[...]``, int64, the tokens that were chosen.
        top_k: how many of the largest probabilities the mass sums, at most V.
        scratch: memory of the shape of ``logits``, to spare an allocation.

    Returns:
        ``[4, ...]``: entropy (bits), surprisal (bits), p1 - p2, sum of the top-k probabilities.
        NaN where the logits hold NaN or +inf; so is the surprisal of what is no token of theirs.

    Entropy and surprisal: Shannon, A Mathematical Theory of Communication (1948).
    """
    logits.clamp_(min=_IMPOSSIBLE)
    return _statistics(logits, _sums(logits, scratch), token_ids, top_k)


def surprisal(logits: Tensor, log_normalizer: Tensor) -> Tensor:
    """Surprisal, in bits, of tokens with these logits under these distributions."""
    return (log_normalizer - logits).clamp(min=0.0) / LN2


def token_logits(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Logits ``[...]`` of tokens ``[...]`` among ``[..., V]``; NaN where there is none of a token.

    What pads a sequence that has ended may be beyond the vocabulary, and in some models so is what
    stands for an image in a prompt. To look that up would fail, and leave a GPU unusable.
    """
    last = logits.shape[-1] - 1
    found = logits.gather(-1, token_ids.clamp(0, last).unsqueeze(-1)).squeeze(-1)
    return torch.where((token_ids >= 0) & (token_ids <= last), found, torch.nan)


def distribution_statistics(
    logits: Tensor, top_k: int, scratch: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of next-token distributions, whatever is chosen from them.

    Args and the first three of the results are those of ``logit_statistics``: entropy (bits),
    p1 - p2, sum of the top-k probabilities; then the logarithm (nats) of the sum of the exponents
    of the logits. Each ``[...]``.
    """
    logits.clamp_(min=_IMPOSSIBLE)
    return _distribution(logits, _sums(logits, scratch), top_k)


class _Sums(NamedTuple):
    """What passes over the whole vocabulary give of clamped logits ``[..., V]``.

    ``peak`` is the largest probability, ``total`` the sum of them all, 1 but for rounding, and
    ``expected_logit`` their sum with the logits, each ``[...]``; ``maxima`` ``[..., V // _BLOCK]``
    has the largest logit of each block.
    """

    peak: Tensor
    total: Tensor
    expected_logit: Tensor
    maxima: Tensor


def _sums(logits: Tensor, scratch: Tensor | None) -> _Sums:
    probabilities = torch.softmax(logits, dim=-1, out=scratch)
    peak, total = probabilities.amax(-1), probabilities.sum(-1)
    expected_logit = probabilities.mul_(logits).sum(-1)
    return _Sums(peak, total, expected_logit, _blocks(logits).amax(-1))


def _sums_of_any(logits: Tensor, scratch: Tensor) -> _Sums:
    """``_sums`` of logits that have not been clamped; they are, where any of them is -inf.

    Which few models have: a CPU is asked, since clamping takes as long as any of the sums.
    """
    if logits.device.type == "cpu":
        sums = _sums(logits, scratch)
        if not sums.expected_logit.isnan().any():
            return sums
    logits.clamp_(min=_IMPOSSIBLE)
    return _sums(logits, scratch)


def _statistics(logits: Tensor, sums: _Sums, token_ids: Tensor, top_k: int) -> Tensor:
    """``logit_statistics`` of logits that have been clamped."""
    entropy, margin, mass, log_normalizer = _distribution(logits, sums, top_k)
    bits = surprisal(token_logits(logits, token_ids), log_normalizer)
    return torch.stack((entropy, bits, margin, mass))


def _distribution(logits: Tensor, sums: _Sums, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``distribution_statistics`` of logits that have been clamped."""
    largest = _largest(logits, sums.maxima, max(top_k, 2))
    # The largest probability is exp(largest logit - log normalizer): the normalizer costs no
    # further pass over the vocabulary.
    log_peak = torch.log(sums.peak)
    entropy = largest[..., 0] * sums.total - sums.expected_logit - log_peak
    log_normalizer = largest[..., 0] - log_peak
    top = torch.exp(largest - log_normalizer.unsqueeze(-1))
    return (
        entropy.clamp(min=0.0) / LN2,
        top[..., 0] - top[..., 1] if top.shape[-1] > 1 else top[..., 0],
        top[..., :top_k].sum(-1).clamp(max=1.0),
        log_normalizer,
    )


def _blocks(logits: Tensor) -> Tensor:
    """The whole blocks of the vocabulary, ``[..., V // _BLOCK, _BLOCK]``."""
    count = logits.shape[-1] // _BLOCK
    blocks: Tensor = logits[..., : count * _BLOCK].unflatten(-1, (count, _BLOCK))
    return blocks


def _largest(logits: Tensor, maxima: Tensor, k: int) -> Tensor:
    """The ``k`` largest values of the last dimension, descending.

    The k largest values lie in the k blocks with the largest maxima, so a sort of the block maxima
    and of k blocks replaces one over the whole vocabulary.
    """
    vocabulary, blocks = logits.shape[-1], maxima.shape[-1]
    if blocks < 4 * k:
        return torch.topk(logits, min(k, vocabulary), dim=-1).values
    best = torch.topk(maxima, k, dim=-1, sorted=False).indices
    places = best.unsqueeze(-1).expand(*best.shape, _BLOCK)
    candidates = _blocks(logits).gather(-2, places).flatten(-2)
    if blocks * _BLOCK < vocabulary:
        candidates = torch.cat((candidates, logits[..., blocks * _BLOCK :]), dim=-1)
    return torch.topk(candidates, k, dim=-1).values


class LogitsReducer:
    """Collects the logits of some steps and reduces them together.

    Attributes:
        pending: steps added and not yet reduced.
        chunks: ``[4, n, B]`` for every few steps that have been reduced.
        reduced: how many steps that are.
    """

    def __init__(
        self, top_k: int, most_steps: int = MOST_STEPS, memory: RunMemory | None = None
    ) -> None:
        self._memory = memory or RunMemory()
        self._steps_memory = self._memory.for_steps()
        self._top_k = top_k
        self._most_steps = most_steps
        self._steps_together = 1
        self._shape = torch.Size()
        self._logits: StepRows | None = None
        self.pending = 0
        self.chunks: list[Tensor] = []
        self.reduced = 0

    @property
    def full(self) -> bool:
        """Whether the pending steps are to be reduced now."""
        return self.pending >= self._steps_together

    def add(self, logits: Tensor) -> None:
        """Add the raw logits ``[B, Q, V]`` of a forward pass, of which the last are the step's.

        Raises:
            Unobservable: they are not of as many sequences as those that are pending.
        """
        newest = logits if logits.shape[1] == 1 else logits[:, -1:]
        if self._logits is None or self.pending == 0:
            most = steps_together(4 * newest.numel(), self._most_steps)
            self._steps_together, self._shape = most, newest.shape
            self._logits = StepRows(self._steps_memory, most, [newest], torch.float32)
        elif newest.shape != self._shape:
            raise Unobservable("the number of sequences changes while they are generated")
        elif self.pending == len(self._logits):
            self._logits = self._with_room(self._logits, newest)
        self._logits.put(self.pending, [newest])
        self.pending += 1

    def _with_room(self, held: StepRows, newest: Tensor) -> StepRows:
        """For more steps than are reduced together: several tokens may come with one pass."""
        longer = StepRows(self._steps_memory, 2 * len(held), [newest], torch.float32)
        longer.rows[: len(held)] = held.rows
        return longer

    @unaffected_by_autocast
    def reduce(self, token_ids: Tensor) -> None:
        """Reduce the pending steps; ``token_ids`` ``[n, B]`` are the tokens chosen at them.

        ``n`` may be one less than the pending steps, when a run broke off between the forward
        pass and the choice of its token: that step is dropped.
        """
        steps = min(self.pending, token_ids.shape[0])
        self.pending = 0
        if self._logits is None or not steps:
            return
        logits = self._logits.rows[:steps].squeeze(2)
        self.reduced += len(logits)
        token_ids = moved(token_ids, logits.device)
        most_bytes = bytes_together(logits.device)
        together = steps_together(4 * logits[0].numel(), len(logits), most_bytes)
        # What passes over the vocabulary is done while a part is in the caches; the rest, at once.
        sums = []
        for part in logits.split(together):
            scratch = self._memory.results.tensor(part.shape, torch.float32, part.device)
            sums.append(_sums_of_any(part, scratch))
        joined = _Sums(*(torch.cat(parts) for parts in zip(*sums, strict=True)))
        self.chunks.append(_statistics(logits, joined, token_ids, self._top_k))

    def result(self) -> Tensor | None:
        """``[4, S, B]`` on the device, ``None`` if no step was reduced."""
        return torch.cat(self.chunks, dim=1) if self.chunks else None
