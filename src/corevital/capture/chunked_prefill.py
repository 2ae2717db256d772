"""Follows a prompt that passes through the model in several forward passes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from corevital.capture.forward_inputs import cached_positions
from corevital.capture.masks import padding_mask
from corevital.capture.unobservable import Unobservable


class ChunkedPrefill:
    """Tells which of the forward passes over a prompt predicts the first token: the last.

    Of ``transformers`` 5 all of them are seen; of 4.57 only the last, over the prompt's last token.
    Of an encoder-decoder, the prompt is what its decoder begins with, known when that begins.
    """

    def __init__(self, prompt_length: int | None) -> None:
        self._prompt_length = prompt_length
        self._passed: int | None = None
        self._forwards = 0
        self._cached: int | Tensor = 0
        self._masks: list[Tensor | None] = []

    def prompt_is(self, length: int) -> None:
        """So many tokens are there when the loop over tokens begins."""
        self._prompt_length = length

    @property
    def whole(self) -> bool:
        """Whether one forward pass took the whole prompt."""
        empty = isinstance(self._cached, Tensor) or self._cached == 0
        return self._forwards == 1 and empty

    @property
    def mask(self) -> Tensor | None:
        """``[B, P]``, 1 or True for a token of the prompt; ``None`` when that cannot be told."""
        newest = self._masks[-1] if self._masks else None
        if self._prompt_length is None:
            return None
        if newest is not None and newest.shape[1] >= self._prompt_length:
            return newest
        known = [mask for mask in self._masks if mask is not None]
        length = sum(mask.shape[1] for mask in known)
        return torch.cat(known, dim=1) if length == self._prompt_length else None

    @property
    def complete(self) -> bool:
        """Whether the whole prompt passes through the model with the latest forward pass."""
        return self._passed is not None and self._passed == self._prompt_length

    def began_empty(self) -> bool:
        """Whether a cache that was taken for empty was; waits for the device."""
        return not isinstance(self._cached, Tensor) or int(self._cached) == 0

    def forward_starts(self, ids: Tensor | None, kwargs: dict[str, Any]) -> None:
        """A forward pass over ``ids`` ``[B, Q]`` begins, a part of the prompt until it is complete.

        Raises:
            Unobservable: the forward passes go beyond the prompt, or are not over tokens.
        """
        if self.complete:
            return
        if ids is None:
            raise Unobservable("chunked prefill of embeddings")
        if self._prompt_length is None:
            raise Unobservable("chunked prefill of a prompt whose length is not known")
        if self._passed is None:
            self._cached = cached_positions(kwargs)
            self._passed = self._cached if isinstance(self._cached, int) else 0
        self._masks.append(padding_mask(kwargs.get("attention_mask"), self._passed))
        self._forwards += 1
        self._passed += ids.shape[1]
        if self._passed > self._prompt_length:
            raise Unobservable("chunked prefill that goes beyond the prompt")
