"""A prompt in chunks: the first token is that of the last chunk's forward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from corevital.capture.chunked_prefill import ChunkedPrefill
from corevital.capture.unobservable import Unobservable
from tests.capture.observe import observe
from tests.capture.teacher_forcing import assert_records_equal_forced
from tests.models import padded_prompts, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel

PROMPT = 12
PADDING = [0, 2, 7]


@pytest.mark.parametrize(
    ("backend", "size", "cache"),
    [
        ("sdpa", 1, None),
        ("sdpa", 5, None),
        ("sdpa", 5, "static"),
        ("sdpa", 12, "static"),
        ("sdpa", 50, None),
        ("eager", 5, None),
        ("eager", 5, "static"),
    ],
)
def test_every_column_is_that_of_the_sequence(backend: str, size: int, cache: str | None) -> None:
    model = tiny_model("llama", attn_implementation=backend)
    # 4.57 gives the tokens of a padded prompt other positions in chunks than it does otherwise.
    padded = not hasattr(model, "_prefill_chunking")
    inputs = padded_prompts(PADDING) if padded else {"input_ids": tiny_prompt(batch=3)}
    arguments: dict[str, Any] = {
        "max_new_tokens": 6,
        "prefill_chunk_size": size,
        "cache_implementation": cache,
    }
    plain = model.generate(**inputs, **arguments)
    sequences, records = observe(model, **inputs, **arguments)
    assert torch.equal(sequences, plain)
    assert_records_equal_forced(records, model, sequences, PROMPT, PADDING if padded else None)


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_sliding_window(cache: str | None) -> None:
    model = tiny_model("mistral")
    window = model.config.sliding_window
    sequences, records = observe(
        model,
        input_ids=tiny_prompt(batch=2),
        prefill_chunk_size=5,
        cache_implementation=cache,
        max_new_tokens=12,
    )
    assert_records_equal_forced(
        records,
        model,
        sequences,
        PROMPT,
        visible=lambda _step, keys: slice(max(keys - window, 0), keys),
    )


def test_the_real_model(smollm2: LoadedModel) -> None:
    inputs = smollm2.chat("Name three rivers in Europe.")
    sequences, records = observe(
        smollm2.model, **inputs, prefill_chunk_size=16, do_sample=False, max_new_tokens=8
    )
    prompt = inputs["input_ids"].shape[1]
    assert_records_equal_forced(records, smollm2.model, sequences, prompt)


def test_forward_passes_are_followed_until_the_prompt_is_complete() -> None:
    chunks = ChunkedPrefill(12)
    complete = []
    for start, stop in ((0, 5), (5, 10), (10, 12)):
        chunks.forward_starts(tiny_prompt()[:, start:stop], {})
        complete.append(chunks.complete)
    assert complete == [False, False, True]
    assert not chunks.whole
    # What follows is none of the prompt's.
    chunks.forward_starts(torch.tensor([[5]]), {})
    assert chunks.complete


def test_a_prompt_in_one_chunk_is_whole() -> None:
    chunks = ChunkedPrefill(12)
    chunks.forward_starts(tiny_prompt(), {})
    assert chunks.complete
    assert chunks.whole


def test_more_than_the_prompt_is_not_taken_for_it() -> None:
    chunks = ChunkedPrefill(12)
    with pytest.raises(Unobservable, match="beyond the prompt"):
        chunks.forward_starts(tiny_prompt(tokens=13), {})


def test_embeddings_are_not_taken_for_the_prompts_tokens() -> None:
    chunks = ChunkedPrefill(12)
    with pytest.raises(Unobservable, match="embeddings"):
        chunks.forward_starts(None, {"inputs_embeds": torch.zeros(1, 5, 8)})


def test_a_prompt_of_unknown_length_is_followed_once_it_is_known() -> None:
    chunks = ChunkedPrefill(None)
    with pytest.raises(Unobservable, match="length is not known"):
        chunks.forward_starts(torch.tensor([[5]]), {})
    chunks.prompt_is(2)
    chunks.forward_starts(torch.tensor([[5]]), {})
    assert not chunks.complete
    chunks.forward_starts(torch.tensor([[6]]), {})
    assert chunks.complete
