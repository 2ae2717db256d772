"""Continuous batching on tiny models, in every supported release of ``transformers``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest import mock

import pytest
import torch
import transformers
from transformers import GenerationConfig

from tests.models import GenerativeModel, tiny_prompt

IS_CURRENT: Final = hasattr(transformers, "ContinuousBatchingConfig")
only_current = pytest.mark.skipif(not IS_CURRENT, reason="4.57 has nothing like it")
PROMPTS: Final = [tiny_prompt(1, tokens, seed=tokens)[0].tolist() for tokens in (5, 12, 9)]
NEW_TOKENS: Final = 8
_SIZES: Final = {"num_blocks": 16, "max_batch_tokens": 64}
Tokens = dict[str, list[int]]


@contextmanager
def _room_on_a_cpu() -> Iterator[None]:
    """4.57 does not know how much memory a machine without an accelerator has."""
    if IS_CURRENT:
        yield
        return
    room = (torch.device("cpu"), 2**30, 0, 0)
    name = "transformers.generation.continuous_batching.cache.get_device_and_memory_breakdown"
    with mock.patch(name, return_value=room):
        yield


def settings(model: GenerativeModel, sizes: dict[str, int], **generation: Any) -> dict[str, Any]:
    """The keywords of ``init_continuous_batching`` for a small cache."""
    usual = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": 1, "pad_token_id": 0}
    config = GenerationConfig(**(usual | generation))
    if IS_CURRENT:
        from transformers import ContinuousBatchingConfig

        chosen: dict[str, Any] = {**_SIZES, "page_size": 32, **sizes}
        batching = ContinuousBatchingConfig(**chosen)
        return {"generation_config": config, "continuous_batching_config": batching}
    model.set_attn_implementation("sdpa_paged")
    for name, value in ({**_SIZES, "block_size": 32} | sizes).items():
        setattr(config, name, value)
    return {"generation_config": config}


def generate_batch(
    model: GenerativeModel,
    prompts: list[list[int]] | None = None,
    sizes: dict[str, int] | None = None,
    **generation: Any,
) -> Tokens:
    """The tokens of every request, by its id."""
    keywords = settings(model, sizes or {}, **generation)
    with _room_on_a_cpu():
        outputs = model.generate_batch(prompts or PROMPTS, **keywords, progress_bar=False)
    return {name: list(output.generated_tokens) for name, output in outputs.items()}


@contextmanager
def started(
    model: GenerativeModel, sizes: dict[str, int] | None = None, **generation: Any
) -> Iterator[Any]:
    """A manager whose thread runs inside the block."""
    manager = model.init_continuous_batching(**settings(model, sizes or {}, **generation))
    with _room_on_a_cpu():
        manager.start()
        try:
            yield manager
        finally:
            manager.stop(block=True, timeout=30)
