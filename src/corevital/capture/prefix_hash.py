"""Names prefixes of token sequences by numbers, on the device and without waiting for it."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_BITS: Final = 64


def place_weights(places: int, device: torch.device) -> Tensor:
    """An odd 64-bit number for each place ``[places]``, the same everywhere.

    SplitMix64 (Steele, Lea and Flood, Fast Splittable Pseudorandom Number Generators, 2014) of the
    place; integers wrap around.
    """
    mixed = (torch.arange(places, device=device) + 1) * _signed(0x9E3779B97F4A7C15)
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    return (mixed ^ _shifted(mixed, 31)) | 1


def prefix_hashes(token_ids: Tensor) -> Tensor:
    """Hash of every prefix of sequences.

    A sum of the tokens, each plus one and times the number of its place, modulo 2^64: two
    sequences that differ have the same hash about once in 2^60 pairs.

    Args:
        token_ids: ``[..., S]``, int64.

    Returns:
        ``[..., S + 1]``, int64: at ``n`` that of the first ``n`` tokens, 0 for none.
    """
    terms = (token_ids + 1) * place_weights(token_ids.shape[-1], token_ids.device)
    return torch.nn.functional.pad(terms.cumsum(-1), (1, 0))


def _signed(number: int) -> int:
    return number - (1 << _BITS) if number >> (_BITS - 1) else number


def _shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shifted to the right, with zeros from the left."""
    return (numbers >> bits) & ((1 << (_BITS - bits)) - 1)
