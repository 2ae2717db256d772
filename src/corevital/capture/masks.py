"""Which keys a query may see, from whatever the attention backend was given."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from corevital.capture.unobservable import Unobservable

LOWEST: Final = torch.finfo(torch.float32).min


def additive_mask(
    mask: Any,
    rows: tuple[int, int],
    queries: int,
    keys: int,
    sliding_window: int | None,
    device: torch.device,
    *,
    causal: bool = True,
) -> Tensor | None:
    """The mask of some query rows, to be added to their scores.

    Args:
        mask: what the attention function got: ``None``, boolean or additive ``[B, H, Q or 1, K]``,
            padding ``[B, K]``, or flex attention's ``BlockMask``.
        rows: first and one past the last query row that is wanted.
        queries: number of queries; the last one is the newest token.
        keys: number of keys that are wanted, from the first.
        sliding_window: how many keys back a query sees, where the backend itself applies that.
        device: where the result is wanted.
        causal: whether ``None`` and padding mean that a query sees no later key, either.

    Returns:
        A float32 tensor that broadcasts to ``[B, H, rows, K]``: 0 where visible, the type's
        minimum where not; ``None`` when every key is visible.

    Raises:
        TypeError: the mask is of an unknown kind.
        Unobservable: a window narrower than the keys that the backend applies itself, without
            causality.
    """
    if isinstance(mask, Tensor) and mask.dim() == 4:
        part = mask[..., :keys] if mask.shape[2] == 1 else mask[:, :, rows[0] : rows[1], :keys]
        part = part.to(device)
        if part.dtype == torch.bool:
            return _additive(part)
        # What hides in float16 is far from the lowest of float32.
        return part.float().masked_fill(part < torch.finfo(part.dtype).min / 2, LOWEST)
    if mask is not None and not isinstance(mask, Tensor):
        return _additive(_block_mask_rows(mask, rows, keys).to(device))
    if not causal and sliding_window is not None and keys > sliding_window:
        raise Unobservable("a sliding window without a mask")
    visible = _causally_visible(rows, queries, keys, sliding_window, device) if causal else None
    if isinstance(mask, Tensor):
        padding = mask[:, None, None, :keys].bool().to(device)
        visible = padding if visible is None else padding & visible
    return None if visible is None else _additive(visible)


def padding_mask(mask: Any, before: int = 0) -> Tensor | None:
    """Which tokens of a prompt are no padding, by what the model's first forward pass got.

    Args:
        mask: ``None``, padding ``[B, P]``, boolean or additive ``[B, H, P, K]``, or such masks by
            the kind of layer.
        before: how many keys of earlier forward passes precede those of the mask's queries.

    Returns:
        ``[B, P]``, 1 or True for a token; ``None`` when that cannot be told or nothing is masked.
    """
    if isinstance(mask, dict):
        mask = next(iter(mask.values()), None)
    if not isinstance(mask, Tensor) or mask.dim() == 2:
        return mask if isinstance(mask, Tensor) else None
    if mask.dim() != 4:
        return None
    # Whatever else it may see, a token sees itself, and nothing sees padding.
    itself = mask[:, 0].diagonal(before, dim1=-2, dim2=-1)
    return itself if mask.dtype == torch.bool else itself == 0


def visible_positions(mask: Any, rows: int, positions: int) -> Tensor | None:
    """Which positions are no padding, by the mask of an attention that is not causal.

    Args:
        mask: what the attention function got, see ``additive_mask``.
        rows: batch size.
        positions: number of keys.

    Returns:
        ``[B, K]`` boolean: whether any query sees the key; ``None`` when all are visible.

    Raises:
        Unobservable: the mask is of a kind that does not tell.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.shape[-1] != positions:
        raise Unobservable("the padding cannot be told from the attention's mask")
    if mask.dim() == 4:
        lowest = None if mask.dtype == torch.bool else torch.finfo(mask.dtype).min / 2
        seen = mask if lowest is None else mask > lowest
        mask = seen.flatten(1, 2).any(1)
    known: Tensor = mask.bool().expand(rows, positions)
    return known


def _causally_visible(
    rows: tuple[int, int],
    queries: int,
    keys: int,
    sliding_window: int | None,
    device: torch.device,
) -> Tensor | None:
    only_newest = rows == (queries - 1, queries)
    if only_newest and (sliding_window is None or keys <= sliding_window):
        return None
    place = torch.arange(keys, device=device)
    cached = max(keys - rows[1], 0) if only_newest else 0
    own_place = torch.arange(rows[0] + cached, rows[1] + cached, device=device)[:, None]
    visible = place <= own_place
    if sliding_window is not None:
        visible = visible & (place > own_place - sliding_window)
    return visible


def _block_mask_rows(mask: Any, rows: tuple[int, int], keys: int) -> Tensor:
    mask_mod = getattr(mask, "mask_mod", None)
    if mask_mod is None:
        raise TypeError(f"attention mask of type {type(mask).__name__}")
    device = mask.kv_num_blocks.device
    batch, heads = mask.shape[0], mask.shape[1]
    visible: Tensor = mask_mod(
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(heads, device=device)[None, :, None, None],
        torch.arange(*rows, device=device)[None, None, :, None],
        torch.arange(keys, device=device)[None, None, None, :],
    )
    return visible.expand(batch, heads, rows[1] - rows[0], keys)


def _additive(visible: Tensor) -> Tensor:
    blank = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device)
    return blank.masked_fill_(~visible, LOWEST)
