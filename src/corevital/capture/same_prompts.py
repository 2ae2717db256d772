"""Which rows of a batch are the same prompt, as several answers to one are."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

_OF_TEXT: Final = {
    "input_ids",
    "attention_mask",
    "position_ids",
    "cache_position",
    "past_key_values",
}


def answers_to_each(
    model: nn.Module, input_ids: Tensor, mask: Tensor | None, kwargs: dict[str, Any]
) -> int:
    """How many rows of a forward pass have each prompt, one behind the other.

    Args:
        model: whose forward pass it is.
        input_ids: ``[B, P]``.
        mask: ``[B, P]``, 0 at padding; ``None`` without any.
        kwargs: of the forward pass. Anything but text, such as images or an adapter for each row,
            may tell rows of the same tokens apart.

    Returns:
        A divisor of ``B``; 1 where that cannot be told, or not without waiting for a device.
    """
    if input_ids.device.type != "cpu" or not _is_text_alone(kwargs) or model.training:
        return 1
    positions = kwargs.get("position_ids")
    of_all_rows = positions is not None and len(positions) == 1
    given = (input_ids, mask, None if of_all_rows else positions)
    return repetitions(*(rows for rows in given if rows is not None))


def repetitions(*tensors: Tensor) -> int:
    """How many times each row of all ``tensors`` ``[B, P]`` stands there, one behind the other.

    Returns:
        A divisor of ``B``; 1 unless all rows stand there equally often.
    """
    alike = torch.stack([(rows[1:] == rows[:-1]).all(-1) for rows in tensors]).all(0)
    same = [*alike.tolist(), False]
    count = same.index(False) + 1
    inside = (found for place, found in enumerate(same, 1) if place % count)
    return count if len(same) % count == 0 and all(inside) else 1


def _is_text_alone(kwargs: dict[str, Any]) -> bool:
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    return (
        (mask is None or (isinstance(mask, Tensor) and mask.dim() == 2))
        and (positions is None or (isinstance(positions, Tensor) and positions.dim() == 2))
        and all(
            kwargs[name] is None or isinstance(kwargs[name], bool | int | str)
            for name in kwargs.keys() - _OF_TEXT
        )
    )
