"""RAUQ: confidence in each token, handed on as far as attention reaches back to the one before.

Vazhentsev et al. 2025, "Uncertainty-Aware Attention Heads: Efficient Unsupervised Uncertainty
Quantification for LLMs" (arXiv:2505.20045, version 1), equations 1 to 4. The attention from token i
to token i - 1 is, as in the authors' implementation (lm-polygraph 0.7), the one by which token i
was generated: see :class:`corevital.record.PreviousTokenWeight`.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from corevital.assess.observed import Series
from corevital.record import AttentionColumns, Floats, LogitColumns

ALPHA: Final = 0.2
"""Weight of a token's own probability, for all of the paper's tasks but summarisation."""

_LEAST_CONFIDENCE: Final = float(np.finfo(np.float64).tiny)


def rauq(
    logits: LogitColumns | None, attention: AttentionColumns | None, alpha: float = ALPHA
) -> float:
    """RAUQ of a sequence in bits, in [0, 1022]; NaN where it cannot be known.

    In each layer l, the head whose weight a on the previous token is largest on average over
    tokens 2 to N gives confidences c(1) = P(1) and c(i) = alpha P(i) + (1 - alpha) a(i) c(i - 1).
    The layer's score is the mean of -log2 c(i) over the tokens, and the largest score of the
    recorded layers is the result. The paper takes natural logarithms: its values are these
    times ln 2.

    A head counts when its weight was observed at every token but the first, a layer when one of
    its heads counts. Every token's surprisal must be finite.

    Args:
        logits: surprisals, which give the probabilities P.
        attention: weights on the previous token.
        alpha: in (0, 1]; 1 leaves the attention out and gives the mean surprisal.
    """
    previous = None if attention is None else attention.previous_token_weight
    if logits is None or previous is None or not np.isfinite(logits.surprisal).all():
        return math.nan
    weight = _strongest_heads(previous.values)
    if weight.size == 0:
        return math.nan
    surprisal = np.maximum(logits.surprisal, 0.0, dtype=np.float64)
    with np.errstate(under="ignore"):
        own = alpha * np.exp2(-surprisal)
        own[0] /= alpha
        confidence = _recurrence(own, (1.0 - alpha) * weight)
    scores = -np.log2(np.maximum(confidence, _LEAST_CONFIDENCE)).mean(axis=0)
    return float(scores.max())


def _strongest_heads(weight: Floats) -> Series:
    """Weight ``[S, <= L]`` of the head with the largest mean in each layer that has one.

    Of ``weight`` ``[S, L, H]``. The first token's weight, which looks back at the prompt, does
    not count and is 0.
    """
    steps, layers, heads = weight.shape
    if 0 in (steps, layers, heads):
        return np.empty((steps, 0))
    with np.errstate(invalid="ignore"):
        total = weight[1:].sum(axis=0, dtype=np.float64)
    total[~np.isfinite(total)] = -math.inf
    head = total.argmax(axis=1)
    observed = np.flatnonzero(total.max(axis=1) > -math.inf)
    strongest: Series = np.clip(weight[:, observed, head[observed]], 0.0, 1.0, dtype=np.float64)
    strongest[0] = 0.0
    return strongest


def _recurrence(own: Series, decay: Series) -> Series:
    """``c[i] = own[i] + decay[i] * c[i - 1]`` for all steps at once, ``[S, L]``.

    ``own`` is ``[S]``, ``decay`` ``[S, L]``, with 0 at the first step. In each round a step
    takes in what twice as many steps before it left (Hillis and Steele 1986, "Data parallel
    algorithms").
    """
    steps = len(own)
    result = np.repeat(own[:, None], decay.shape[1], axis=1)
    reach = 1
    while reach < steps:
        result[reach:] += decay[reach:] * result[:-reach]
        decay[reach:] *= decay[:-reach]
        reach *= 2
    return result
