"""An attention backend that CoreVital cannot read: its masks are of a kind of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import AttentionInterface

REASON = "unavailable: TypeError: attention mask of type OddMask"


class OddMask:
    """A mask that only the attention function knows how to read."""

    def __init__(self, mask: torch.Tensor | None) -> None:
        self.mask = mask


@contextmanager
def odd_attention() -> Iterator[str]:
    """Register the backend inside the block; its name is to be given as ``attn_implementation``."""
    sdpa = AttentionInterface()["sdpa"]

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: OddMask,
        **options: Any,
    ) -> Any:
        return sdpa(module, query, key, value, attention_mask.mask, **options)

    def mask(*args: Any, **options: Any) -> OddMask:
        return OddMask(sdpa_mask(*args, **options))

    AttentionInterface.register("odd", attend)
    AttentionMaskInterface.register("odd", mask)
    yield "odd"
    for interface in (AttentionInterface, AttentionMaskInterface):
        del interface._global_mapping["odd"]
