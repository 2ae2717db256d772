"""What a forward pass of a language model is given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, StaticCache

from corevital.capture.forward_inputs import (
    cached_positions,
    decoder_ids,
    given_ids,
    given_rows,
    seen_positions,
)
from tests.models import HIDDEN, tiny_model, tiny_prompt

IDS = torch.zeros(2, 7, dtype=torch.long)
EMBEDS = torch.zeros(2, 5, HIDDEN)


def cache_of(positions: int) -> DynamicCache:
    cache = DynamicCache()
    with torch.no_grad():
        tiny_model("llama")(tiny_prompt(tokens=positions), past_key_values=cache)
    return cache


class OwnCache:
    """Keeps a past that it does not count."""


def test_token_ids_are_the_first_argument_or_have_its_name() -> None:
    assert given_ids((IDS,), {}) is IDS
    assert given_ids((), {"input_ids": IDS}) is IDS
    assert given_ids((), {"inputs_embeds": EMBEDS}) is None
    assert decoder_ids({"decoder_input_ids": IDS, "input_ids": EMBEDS}) is IDS


def test_rows_are_those_of_tokens_or_embeddings() -> None:
    assert given_rows((IDS,), {}) == 2
    assert given_rows((), {"inputs_embeds": EMBEDS[:1]}) == 1
    assert given_rows((), {}) is None


def test_a_cache_says_how_many_positions_it_holds() -> None:
    assert cached_positions({}) == 0
    assert cached_positions({"past_key_values": cache_of(6)}) == 6
    assert cached_positions({"past_key_values": OwnCache()}) == 0


@pytest.mark.parametrize(
    ("args", "kwargs", "seen"),
    [
        ((IDS,), {}, 7),
        ((), {"input_ids": IDS}, 7),
        ((), {"input_ids": IDS, "past_key_values": None, "position_ids": None}, 7),
        ((), {"inputs_embeds": EMBEDS, "attention_mask": IDS, "output_hidden_states": True}, 5),
        # What is not given at all.
        ((), {}, None),
        ((IDS[0],), {}, None),
        # What may say what came before.
        ((IDS, IDS), {}, None),
        ((IDS,), {"position_ids": IDS}, None),
        ((IDS,), {"cache_position": IDS}, None),
        ((IDS,), {"cache_params": OwnCache()}, None),
        ((IDS,), {"past_key_values": OwnCache()}, None),
    ],
)
def test_positions_are_seen_if_nothing_else_may_say_what_came_before(
    args: tuple[Any, ...], kwargs: dict[str, Any], seen: int | None
) -> None:
    assert seen_positions(args, kwargs) == seen


def test_positions_of_a_cache_are_seen() -> None:
    assert seen_positions((IDS,), {"past_key_values": cache_of(6)}) == 13


def test_positions_that_are_counted_on_a_device_are_not_waited_for() -> None:
    class OnDevice(StaticCache):
        def get_seq_length(self, layer_idx: int = 0) -> Any:
            return torch.zeros((), device="meta")

    cache = OnDevice(config=tiny_model("llama").config, max_cache_len=16)
    assert isinstance(cached_positions({"past_key_values": cache}), torch.Tensor)
    assert seen_positions((IDS,), {"past_key_values": cache}) is None
