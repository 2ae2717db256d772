"""Hashes name prefixes."""

from __future__ import annotations

import itertools

import torch

from corevital.capture.prefix_hash import place_weights, prefix_hashes


def test_a_hash_is_that_of_the_prefix_whatever_comes_behind() -> None:
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 8]])
    hashes = prefix_hashes(tokens)
    assert hashes.shape == (2, 5)
    assert torch.equal(hashes[0, :3], hashes[1, :3])
    assert (hashes[0, 3:] != hashes[1, 3:]).all()
    for length in range(5):
        assert torch.equal(prefix_hashes(tokens[:, :length])[:, -1], hashes[:, length])


def test_nothing_and_a_token_of_id_zero_differ() -> None:
    assert len(set(prefix_hashes(torch.zeros(40, dtype=torch.int64)).tolist())) == 41


def test_all_short_sequences_of_a_few_tokens_have_hashes_of_their_own() -> None:
    sequences = torch.tensor(list(itertools.product(range(8), repeat=5)))
    assert len(set(prefix_hashes(sequences)[:, 1:].flatten().tolist())) == sum(
        8**length for length in range(1, 6)
    )


def test_the_weights_are_those_of_splitmix64() -> None:
    def splitmix64(place: int) -> int:
        mixed = (place + 1) * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        return (mixed ^ mixed >> 31) | 1

    weights = place_weights(100, torch.device("cpu")).tolist()
    assert [weight % 2**64 for weight in weights] == [splitmix64(place) for place in range(100)]


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    prefix_hashes(torch.arange(10))
    assert torch.equal(torch.get_rng_state(), before)
