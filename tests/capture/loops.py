"""Decoding loops over ``custom_generate`` that several tests run."""

from __future__ import annotations

from typing import Any

from transformers import GenerationMixin


def library_loop(model: Any, input_ids: Any, **options: Any) -> Any:
    """The library's own."""
    return GenerationMixin._sample(model, input_ids, **options)
