"""Next-token statistics from the model's raw logits."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import MOST_STEPS, bytes_together, steps_together
from corevital.capture.scratch import Scratch

LN2: Final = math.log(2.0)
_BLOCK: Final = 128
WAITING_BYTES: Final = 16 * 2**20
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
        NaN where the logits hold NaN or +inf.

    Entropy and surprisal: Shannon, A Mathematical Theory of Communication (1948).
    """
    return _statistics(logits.clamp_(min=_IMPOSSIBLE), token_ids, top_k, scratch)


def _statistics(logits: Tensor, token_ids: Tensor, top_k: int, scratch: Tensor | None) -> Tensor:
    """``logit_statistics`` of logits that have been clamped."""
    entropy, margin, mass, log_normalizer = _distribution(logits, top_k, scratch)
    chosen = logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)
    return torch.stack((entropy, surprisal(chosen, log_normalizer), margin, mass))


def surprisal(logits: Tensor, log_normalizer: Tensor) -> Tensor:
    """Surprisal, in bits, of tokens with these logits under these distributions."""
    return (log_normalizer - logits).clamp(min=0.0) / LN2


def distribution_statistics(
    logits: Tensor, top_k: int, scratch: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Statistics of next-token distributions, whatever is chosen from them.

    Args and the first three of the results are those of ``logit_statistics``: entropy (bits),
    p1 - p2, sum of the top-k probabilities; then the logarithm (nats) of the sum of the exponents
    of the logits. Each ``[...]``.
    """
    return _distribution(logits.clamp_(min=_IMPOSSIBLE), top_k, scratch)


def _distribution(
    logits: Tensor, top_k: int, scratch: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``distribution_statistics`` of logits that have been clamped."""
    probabilities = torch.softmax(logits, dim=-1, out=scratch)
    largest = _largest(logits, max(top_k, 2))
    # The largest probability is exp(largest logit - log normalizer): the normalizer costs no
    # further pass over the vocabulary.
    log_peak = torch.log(probabilities.amax(-1))
    expected_logit = torch.linalg.vecdot(probabilities, logits)
    entropy = largest[..., 0] * probabilities.sum(-1) - expected_logit - log_peak
    log_normalizer = largest[..., 0] - log_peak
    top = torch.exp(largest - log_normalizer.unsqueeze(-1))
    return (
        entropy.clamp(min=0.0) / LN2,
        top[..., 0] - top[..., 1] if top.shape[-1] > 1 else top[..., 0],
        top[..., :top_k].sum(-1).clamp(max=1.0),
        log_normalizer,
    )


def _largest(logits: Tensor, k: int) -> Tensor:
    """The ``k`` largest values of the last dimension, descending.

    The k largest values lie in the k blocks with the largest maxima, so a sort of the block maxima
    and of k blocks replaces one over the whole vocabulary.
    """
    vocabulary = logits.shape[-1]
    whole = vocabulary - vocabulary % _BLOCK
    if whole < 4 * k * _BLOCK:
        return torch.topk(logits, min(k, vocabulary), dim=-1).values
    blocks = logits[..., :whole].unflatten(-1, (-1, _BLOCK))
    best = torch.topk(blocks.amax(-1), k, dim=-1, sorted=False).indices
    candidates = blocks.gather(-2, best.unsqueeze(-1).expand(*best.shape, _BLOCK)).flatten(-2)
    if whole < vocabulary:
        candidates = torch.cat((candidates, logits[..., whole:]), dim=-1)
    return torch.topk(candidates, k, dim=-1).values


class LogitsReducer:
    """Collects the logits of a few steps and reduces them together.

    Attributes:
        chunks: ``[4, n, B]`` for every few steps that have been reduced.
        reduced: how many steps that are.
    """

    def __init__(self, top_k: int, most_steps: int = MOST_STEPS) -> None:
        self._top_k = top_k
        self._most_steps = most_steps
        self._steps_together = 1
        self._logits: list[Tensor] = []
        self._memory = Scratch()
        self._scratch = Scratch()
        self.chunks: list[Tensor] = []
        self.reduced = 0

    @property
    def full(self) -> bool:
        """Whether the pending steps are to be reduced now."""
        return len(self._logits) >= self._steps_together

    @property
    def pending(self) -> int:
        """Steps added and not yet reduced."""
        return len(self._logits)

    def add(self, logits: Tensor, *, copy: bool = False) -> None:
        """Add the raw logits ``[B, Q, V]`` of a forward pass, of which the last are the step's.

        ``copy`` them where someone else may write to them before they are reduced: a compiled
        forward pass may use the same memory for every output.
        """
        if not self._logits:
            per_step = logits.element_size() * logits.shape[0] * logits.shape[2]
            self._steps_together = steps_together(per_step, self._most_steps, WAITING_BYTES)
        # A copy where a view would keep the logits of a whole prompt alive.
        view = logits.shape[1] == 1 and not copy
        self._logits.append(logits[:, 0] if view else logits[:, -1].clone())

    @unaffected_by_autocast
    def reduce(self, token_ids: Tensor) -> None:
        """Reduce the pending steps; ``token_ids`` ``[n, B]`` are the tokens chosen at them.

        ``n`` may be one less than the pending steps, when a run broke off between the forward
        pass and the choice of its token: that step is dropped.
        """
        steps = token_ids.shape[0]
        pending, self._logits = self._logits[:steps], []
        if not pending:
            return
        self.reduced += len(pending)
        device = pending[0].device
        token_ids = token_ids.to(device, non_blocking=True)
        together = steps_together(4 * pending[0].numel(), len(pending), bytes_together(device))
        for start in range(0, len(pending), together):
            part = slice(start, start + together)
            self.chunks.append(self._statistics(pending[part], token_ids[part]))

    def _statistics(self, pending: list[Tensor], token_ids: Tensor) -> Tensor:
        """``logit_statistics`` of some steps' logits, which stay as they are."""
        shape, device = (len(pending), *pending[0].shape), pending[0].device
        scratch = self._scratch.tensor(shape, torch.float32, device)
        if len(pending) == 1 and pending[0].dtype == torch.float32 and device.type == "cpu":
            given = pending[0].unsqueeze(0)
            statistics = _statistics(given, token_ids, self._top_k, scratch)
            # An impossible token makes them NaN, unless it is out of the way.
            if not bool(torch.isnan(statistics[0]).any()):
                return statistics
        logits = self._memory.tensor(shape, torch.float32, device)
        if pending[0].dtype == torch.float32:
            for own, given in zip(logits, pending, strict=True):
                torch.clamp(given, min=_IMPOSSIBLE, out=own)
        else:
            logits.copy_(torch.stack(pending)).clamp_(min=_IMPOSSIBLE)
        return _statistics(logits, token_ids, self._top_k, scratch)

    def result(self) -> Tensor | None:
        """``[4, S, B]`` on the device, ``None`` if no step was reduced."""
        return torch.cat(self.chunks, dim=1) if self.chunks else None
