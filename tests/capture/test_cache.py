"""Caches that alter what they keep."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from tests.capture.observe import observe
from tests.models import GenerativeModel, tiny_model, tiny_prompt

STEPS = 24
LENGTH = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}


def quantised() -> dict[str, Any]:
    """Of the keys, all but the newest few have four bits."""
    config = {"backend": "quanto", "nbits": 4, "q_group_size": 8, "residual_length": 6}
    return {"cache_implementation": "quantized", "cache_config": config}


def entropies(attentions: Any) -> NDArray[np.float64]:
    """Mean over heads ``[S, L]`` of the entropy, bits, of the newest rows that a model returned."""
    newest = [[weights[0, :, -1].double() for weights in step] for step in attentions]
    bits = [
        [float(-(rows * rows.clamp(min=1e-30).log2()).sum(-1).mean()) for rows in step]
        for step in newest
    ]
    return np.array(bits)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_attention_is_that_to_the_quantised_keys(backend: str) -> None:
    """As the model's own weights say, which are not those to the keys as they were."""
    outputs = {"return_dict_in_generate": True, "output_attentions": True, "output_logits": True}
    eager = tiny_model("llama", attn_implementation="eager")
    expected = eager.generate(tiny_prompt(), **LENGTH, **outputs, **quantised())
    exact = eager.generate(tiny_prompt(), **LENGTH, **outputs)

    model = tiny_model("llama", attn_implementation=backend)
    sequences, (record,) = observe(model, inputs=tiny_prompt(), **LENGTH, **quantised())

    assert torch.equal(sequences, expected.sequences)
    assert record.steps == STEPS
    assert record.attention is not None
    weights = entropies(expected.attentions)
    assert np.abs(weights - entropies(exact.attentions)).max() > 0.001
    np.testing.assert_allclose(record.attention.entropy_mean, weights, atol=1e-5)
    assert record.logits is not None
    nats = torch.log_softmax(torch.cat(expected.logits).double(), dim=-1)
    entropy = -(nats.exp() * nats).sum(-1) / math.log(2)
    np.testing.assert_allclose(record.logits.entropy, entropy, atol=1e-4)


@contextmanager
def altered(model: GenerativeModel, alter: Callable[[Any, int], None]) -> Iterator[None]:
    """Call ``alter`` with a layer's cache, and its number of queries, behind each attention."""

    def hook(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs["past_key_values"].layers[module.layer_idx]
        alter(cache, kwargs["hidden_states"].shape[1])

    with ExitStack() as stack:
        for layer in model.model.layers:
            handle = layer.self_attn.register_forward_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def prune(cache: Any, queries: int) -> None:
    """Behind the prompt, half of each key is gone; there are as many keys as before."""
    if queries > 1:
        kept = torch.arange(cache.keys.shape[-1]) % 2 == 0
        cache.keys = cache.keys * kept


def forget(cache: Any, queries: int) -> None:
    """Of every ten keys, the oldest three are forgotten, at whatever step."""
    if queries == 1 and cache.keys.shape[2] % 10 == 0:
        cache.keys, cache.values = cache.keys[:, :, 3:], cache.values[:, :, 3:]


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("alter", [prune, forget])
def test_attention_is_that_to_the_keys_before_they_were_altered(
    alter: Callable[[Any, int], None], backend: str
) -> None:
    outputs = {"return_dict_in_generate": True, "output_attentions": True}
    eager = tiny_model("llama", attn_implementation="eager")
    with altered(eager, alter):
        expected = eager.generate(tiny_prompt(), **LENGTH, **outputs)

    model = tiny_model("llama", attn_implementation=backend)
    with altered(model, alter):
        sequences, (record,) = observe(model, inputs=tiny_prompt(), **LENGTH)

    assert torch.equal(sequences, expected.sequences)
    assert record.attention is not None
    weights = entropies(expected.attentions)
    np.testing.assert_allclose(record.attention.entropy_mean, weights, atol=1e-5)
