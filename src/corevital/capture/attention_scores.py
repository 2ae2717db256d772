"""From queries and keys to attention weights and their statistics, on the model's own backend."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from corevital.capture.masks import LOWEST
from corevital.capture.transfer import moved

LN2: Final = math.log(2.0)
_TINY: Final = torch.finfo(torch.float32).tiny
COLLAPSED_BELOW: Final = 0.03
FOCUSED_ABOVE: Final = 0.9
LANES: Final = 32
_MANY_LEFT_OVER: Final = 8
# Products of float16 queries and keys can exceed that type before they are scaled. A power of 2
# takes them out of reach, and out again, without rounding.
_FLOAT16_HEADROOM: Final = 2.0**8


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What an attention function does between the scores and the softmax."""

    scaling: float | None
    softcap: float | None
    sliding_window: int | None
    has_sinks: bool
    has_bias: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> ScoreOptions:
        """The keyword arguments of an attention function."""
        get = options.get
        return cls(
            get("scaling"),
            get("softcap"),
            get("sliding_window"),
            get("s_aux") is not None,
            get("position_bias") is not None,
        )

    def write_product(self, query: Tensor, key: Tensor, out: Tensor) -> None:
        """Write ``product`` to ``out``, which may be of another device and type."""
        if (key.device, key.dtype) == (out.device, out.dtype):
            self.product(query, key, out)
        else:
            out.copy_(moved(self.product(query, key), out.device))

    def product(self, query: Tensor, key: Tensor, out: Tensor | None = None) -> Tensor:
        """``q . K^T``, with grouped-query heads, for ``apply`` to make scores of.

        Args:
            query: ``[B, H, Q, D]``, after rotary embedding.
            key: ``[B, Hkv, K, D]``; Hkv divides H.
            out: where to write the product, contiguous, of the key's type.

        Returns:
            ``[B, H, Q, K]`` in the key's type, which under autocast may not be the query's; scaled
            where that is float32, a part of the product where it is float16.
        """
        batch, heads, queries, width = query.shape
        key_heads = key.shape[1]
        query = query.to(key.dtype)
        if key.dtype == torch.float16:
            query = query / _FLOAT16_HEADROOM
        rows = query.reshape(batch * key_heads, heads // key_heads * queries, width)
        keys = key.reshape(batch * key_heads, -1, width).mT
        if out is None:
            out = key.new_empty((batch, heads, queries, key.shape[2]))
        by_key_head = out.view(*rows.shape[:2], -1)
        # A factor of the product costs nothing; a pass over the scores does.
        scaling = self._scaling(width) if key.dtype == torch.float32 else 1.0
        torch.baddbmm(by_key_head, rows, keys, beta=0, alpha=scaling, out=by_key_head)
        return out

    def apply(self, product: Tensor, width: int, out: Tensor | None = None) -> Tensor:
        """Scale and cap what ``product`` gave, in float32; ``width`` is that of a head.

        A product in float32 is overwritten; others are written to ``out``, if it is given.
        """
        scores = product.float() if out is None else out.copy_(product)
        if product.dtype == torch.float16:
            scores.mul_(self._scaling(width) * _FLOAT16_HEADROOM)
        elif product.dtype != torch.float32:
            scores.mul_(self._scaling(width))
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        return scores

    def _scaling(self, width: int) -> float:
        return width**-0.5 if self.scaling is None else self.scaling


def head_statistics(entropy: Tensor, normalized: Tensor, concentration: Tensor) -> Tensor:
    """Reduce per-head entropies and largest weights over heads.

    Args:
        entropy: ``[..., H]`` in nats.
        normalized: ``[..., H]``, entropy divided by the logarithm of the number of visible keys.
        concentration: ``[..., H]``, largest weight of each head's row.

    Returns:
        ``[8, ...]``: entropy mean, minimum and maximum over heads (bits), normalised entropy mean,
        concentration maximum and minimum, collapsed heads, focused heads. NaN entropies stay NaN.
    """
    return torch.stack(
        (
            entropy.mean(-1) / LN2,
            entropy.amin(-1) / LN2,
            entropy.amax(-1) / LN2,
            normalized.mean(-1),
            concentration.amax(-1),
            concentration.amin(-1),
            (normalized < COLLAPSED_BELOW).sum(-1).float(),
            (concentration > FOCUSED_ABOVE).sum(-1).float(),
        )
    )


def score_statistics(scores: Tensor, out: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``softmax(scores)`` over the last dimension, its largest weight and its entropy (nats).

    With the largest score at 0, the largest weight is exp(-log normalizer), so the entropy
    ``log normalizer - sum(p * score)`` needs no logarithm of every weight. ``scores`` are
    overwritten; the softmax is written to ``out``.
    """
    scores.sub_(row_maxima(scores).unsqueeze(-1))
    weights = torch.softmax(scores, dim=-1, out=out)
    concentration = row_maxima(weights)
    entropy = -torch.log(concentration) - torch.mul(weights, scores, out=scores).sum(-1)
    return weights, concentration, entropy


def row_maxima(values: Tensor) -> Tensor:
    """``values.amax(-1)``; of float32 on a CPU, sooner.

    There torch takes 32 of a row together, and those that are left over one by one, which of a
    short row is most of the time. So the last 32 are taken together, some of them once more.
    """
    keys = values.shape[-1]
    left_over = keys % LANES
    if values.device.type != "cpu" or keys < LANES or left_over < _MANY_LEFT_OVER:
        return values.amax(-1)
    whole, newest = values[..., : keys - left_over], values[..., -LANES:]
    return torch.maximum(whole.amax(-1), newest.amax(-1))


def weight_statistics(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Largest weight and entropy (nats) of weights over the last dimension."""
    negative = weights.clamp(min=_TINY).log_().mul_(weights)
    return weights.amax(-1), -negative.sum(-1)


def stacked_bias(
    biases: list[Tensor],
    device: torch.device,
    queries: slice = slice(None),
    keys: slice = slice(None),
) -> Tensor:
    """A part of some layers' position biases, ``[l or 1, B or 1, H, q, k]`` in float32."""
    if all(bias is biases[0] for bias in biases):
        biases = biases[:1]
    return torch.stack([bias[:, :, queries, keys].to(device) for bias in biases]).float()


def stacked_sinks(sinks: list[Tensor], device: torch.device) -> Tensor:
    """Some layers' sinks, each ``[H]``, broadcasting to ``[l, B, H, q]`` in float32."""
    on_device = [moved(layer, device) for layer in sinks]
    return torch.stack(on_device).float()[:, None, :, None]


def sink_statistics(scores: Tensor, sinks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """As ``score_statistics``, with a sink ``[H]`` in each layer.

    A sink takes its part of the softmax but is no key.
    """
    column = stacked_sinks(sinks, scores.device)[..., None].expand(*scores.shape[:-1], 1)
    weights = torch.softmax(torch.cat((scores, column), dim=-1), dim=-1)
    weights = weights[..., :-1]
    return weights, *weight_statistics(weights)


def log_visible(mask: Tensor | None, keys: int) -> Tensor | float:
    """Natural logarithm of the number of visible keys, broadcasting to ``[l, B, H, n]``.

    One visible key has no entropy: any positive divisor gives the 0 that the definition asks for.
    """
    if mask is None:
        return math.log(max(keys, 2))
    counts = (mask > LOWEST / 2).sum(-1).clamp(min=2)
    return torch.log(counts.float())
