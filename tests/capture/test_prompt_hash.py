"""The same prompt has the same hash, however it was handed over."""

from __future__ import annotations

import hashlib
import re
import struct
from typing import Any

import numpy as np
import pytest
import torch

from corevital.capture.masks import padding_mask
from corevital.capture.prompt_hash import prompt_hash
from tests.capture.observe import observe
from tests.models import GenerativeModel, tiny_model, tiny_prompt

SETTINGS = {"max_new_tokens": 2, "min_new_tokens": 2, "do_sample": False}
PADDING = 4


def hashes(model: GenerativeModel, **arguments: Any) -> list[str | None]:
    _, records = observe(model, **(SETTINGS | arguments))
    return [record.prompt_hash for record in records]


def padded(prompt: torch.Tensor) -> dict[str, torch.Tensor]:
    """The prompt with padding on its left, and a mask that says so."""
    padding = torch.zeros(prompt.shape[0], PADDING, dtype=torch.long)
    return {
        "inputs": torch.cat((padding, prompt), dim=1),
        "attention_mask": torch.cat((padding, torch.ones_like(prompt)), dim=1),
    }


def test_it_is_the_beginning_of_a_sha_256_over_name_and_ids() -> None:
    content = b"na\xc3\xafve\0" + struct.pack("<3q", 5, 70_000, 2**40)
    expected = hashlib.sha256(content).hexdigest()[:16]

    assert prompt_hash("naïve", np.asarray([5, 70_000, 2**40])) == expected
    assert prompt_hash("naïve", np.asarray([5, 70_000, 2**40], dtype=">i8")) == expected


def test_it_does_not_depend_on_the_integer_type_or_the_memory_layout() -> None:
    ids = np.arange(6)

    assert prompt_hash("m", ids[::2]) == prompt_hash("m", np.asarray([0, 2, 4], dtype=np.int32))


def test_other_names_and_other_prompts_have_other_hashes() -> None:
    ids = np.asarray([1, 2, 3])
    found = {prompt_hash("a", ids), prompt_hash("b", ids), prompt_hash("a", ids[::-1])}

    assert len(found) == 3


def test_a_prompt_without_tokens_has_none() -> None:
    assert prompt_hash("a", np.asarray([], dtype=np.int64)) is None


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_padding_changes_nothing(family: str, backend: str, cache: str | None) -> None:
    model = tiny_model(family, attn_implementation=backend)
    prompt = tiny_prompt()
    (alone,) = hashes(model, inputs=prompt)

    assert alone == prompt_hash(type(model).__name__, prompt[0].numpy())
    assert hashes(model, **padded(prompt), cache_implementation=cache) == [alone]


def test_padding_changes_nothing_where_layers_have_masks_of_several_kinds() -> None:
    model = tiny_model("gemma2", attn_implementation="eager")
    prompt = tiny_prompt()

    assert hashes(model, **padded(prompt)) == hashes(model, inputs=prompt)


def test_a_batch_changes_nothing() -> None:
    model = tiny_model("llama")
    first, second = tiny_prompt(seed=1), tiny_prompt(seed=2)
    batch = torch.cat((first, second, first))

    assert hashes(model, inputs=batch) == [
        *hashes(model, inputs=first),
        *hashes(model, inputs=second),
        *hashes(model, inputs=first),
    ]


def test_several_answers_to_one_prompt_have_its_hash() -> None:
    model = tiny_model("llama")
    torch.manual_seed(0)

    found = hashes(model, inputs=tiny_prompt(), do_sample=True, num_return_sequences=3)

    assert found == 3 * hashes(model, inputs=tiny_prompt())


def test_what_is_generated_changes_nothing() -> None:
    model = tiny_model("llama")

    longer = {"max_new_tokens": 9, "min_new_tokens": 9}
    assert hashes(model, inputs=tiny_prompt(), **longer) == hashes(model, inputs=tiny_prompt())


def test_a_prompt_that_continues_a_cache_is_the_whole_prompt() -> None:
    model = tiny_model("llama")
    prompt = tiny_prompt()
    with torch.no_grad():
        cache = model(prompt[:, :8], use_cache=True).past_key_values

    assert hashes(model, inputs=prompt, past_key_values=cache) == hashes(model, inputs=prompt)


def test_a_prompt_of_embeddings_has_none() -> None:
    model = tiny_model("llama")
    embeddings = model.get_input_embeddings()(tiny_prompt()).detach()

    assert hashes(model, inputs_embeds=embeddings) == [None]


def test_it_has_16_hexadecimal_digits() -> None:
    (found,) = hashes(tiny_model("llama"), inputs=tiny_prompt())

    assert found is not None
    assert re.fullmatch("[0-9a-f]{16}", found)


# The mask that says what is padding


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[0, 1, 1]]),
        torch.tensor([[[[0, 0, 0, 0], [0, 1, 0, 0], [0, 1, 1, 0]]]]).bool(),
        torch.tensor([[[[-9e9, -9e9, -9e9], [-9e9, 0, -9e9], [-9e9, 0, 0]]]]),
        {"full_attention": torch.tensor([[0, 1, 1]])},
    ],
    ids=["padding", "boolean", "additive", "several"],
)
def test_padding_is_read_from_every_kind_of_mask(mask: Any) -> None:
    found = padding_mask(mask)

    assert found is not None
    assert found.bool().tolist() == [[False, True, True]]


def test_a_token_outside_of_the_last_ones_window_is_no_padding() -> None:
    window = torch.tensor([[1, 0, 0], [1, 1, 0], [0, 1, 1]]).bool()
    found = padding_mask(window[None, None])

    assert found is not None
    assert found.tolist() == [[True, True, True]]


@pytest.mark.parametrize("mask", [None, {}, "unknown", torch.ones(3)])
def test_nothing_is_known_without_a_mask(mask: Any) -> None:
    assert padding_mask(mask) is None
