"""Each head's weight on the token before the one that is being generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from corevital.capture.masks import LOWEST


def middle_layers(count: int) -> range:
    """Positions of the middle third of ``count`` layers, the layers at both its ends included.

    As in the implementation of RAUQ by its authors (lm-polygraph 0.7, ``estimators/rauq.py``).
    """
    return range(count // 3, min(-(-2 * count // 3) + 1, count))


def places_within(positions: Sequence[int], wanted: range) -> slice:
    """Where the ``wanted`` are among ascending ``positions``."""
    inside = [place for place, position in enumerate(positions) if position in wanted]
    return slice(inside[0], inside[-1] + 1) if inside else slice(0, 0)


def newest_token_weight(weights: Tensor, mask: Tensor | None, *, last_is_newest: bool) -> Tensor:
    """Weight of each row on the key of its own token, ``[H, n, l, B]`` in float16.

    The newest row is that of the token generated last, and predicts the next: its own key is the
    previous token of the one being generated. For RAUQ that weight is the attention from token i
    to token i - 1 (lm-polygraph 0.7, ``stat_calculators/greedy_probs.py``, reads it there too).

    Args:
        weights: ``[l, B, H, n, K]`` of ``n`` consecutive steps.
        mask: additive, broadcasting to ``[B, H, n, K]``; ``None`` if all keys are visible.
        last_is_newest: whether the last key is that of the last row, and those before it of the
            rows before. Otherwise, as in a fixed-size cache that is not filled yet, the newest
            key is the last that the mask leaves visible.
    """
    layers, batch, heads, steps, keys = weights.shape
    if last_is_newest or mask is None:
        own = weights.diagonal(keys - steps, -2, -1)
    else:
        place = torch.arange(keys, device=weights.device)
        newest = torch.where(mask > LOWEST / 2, place, 0).amax(-1, keepdim=True)
        own = weights.gather(-1, newest.expand(layers, batch, heads, steps, 1)).squeeze(-1)
    return own.permute(2, 3, 0, 1).to(torch.float16, copy=True)
