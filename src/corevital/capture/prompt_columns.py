"""Turns what the prompt left on the device into arrays on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from corevital.capture.prompt import SPARSE_ABOVE, SparseWeights
from corevital.capture.transfer import to_host
from corevital.record import SparseAttention


def by_layer(tensors: dict[int, Tensor], layers: int) -> NDArray[np.float32] | None:
    """One ``[B]`` or ``[B, H]`` tensor per layer as ``[L, B, ...]``, NaN where there is none."""
    if not tensors:
        return None
    widest = max(tensor.numel() for tensor in tensors.values())
    shape = next(tensor.shape for tensor in tensors.values() if tensor.numel() == widest)
    values = np.full((layers, *shape), np.nan, dtype=np.float32)
    for position, tensor in tensors.items():
        values[position][..., : tensor.shape[-1]] = to_host(tensor)
    return values


def sparse_weights(
    parts: Sequence[SparseWeights], valid: Tensor
) -> tuple[SparseAttention | None, ...]:
    """Every sequence's weights above the threshold, with places counted from its first token.

    ``valid`` ``[B, P]`` is False at padding, on either side.
    """
    rows = valid.shape[0]
    if not parts:
        return (None,) * rows
    padding = valid.float().argmax(-1).cpu().numpy()
    newest = {layer: part for part in parts for layer in part.positions}
    places, weights, totals = [], [], np.zeros(rows, dtype=np.int64)
    for part in parts:
        # Of a layer that attends several times, the last counts.
        counts = np.array([newest[layer] is part for layer in part.positions])
        index = part.index.cpu().numpy()
        used = np.count_nonzero(index >= 0)
        layer, row, head, query, key = np.unravel_index(index[:used], part.shape)
        query, key = query + part.first_query - padding[row], key - padding[row]
        place = np.stack((row, np.asarray(part.positions)[layer], head, query, key))
        weight = to_host(part.weight)[:used]
        if not counts.all():
            place, weight = place[:, counts[layer]], weight[counts[layer]]
        places.append(place)
        weights.append(weight)
        totals += part.total.sum(2).cpu().numpy()[counts].sum(0)
    by_row, weight = np.concatenate(places, axis=1), np.concatenate(weights)
    mine = [by_row[0] == row for row in range(rows)]
    return tuple(
        _sparse_attention(by_row[1:, mine[row]], weight[mine[row]], int(totals[row]))
        for row in range(rows)
    )


def _sparse_attention(
    places: NDArray[np.intp], weight: NDArray[np.float32], total: int
) -> SparseAttention:
    layer, head, query, key = places
    return SparseAttention(
        threshold=SPARSE_ABOVE,
        layer=layer.astype(np.int16),
        head=head.astype(np.int16),
        query=query.astype(np.int32),
        key=key.astype(np.int32),
        weight=weight,
        total=total,
    )
