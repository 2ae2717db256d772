"""Whatever the architecture and the way of decoding, a generation is the same under CoreVital.

Every architecture is tried with the modes of ``CORE``, and with its share of the others: each of
those with one architecture in ``SHARES``. ``--zoo=full`` tries every architecture with every mode.
Of another release of transformers than the zoo was made for, what can be built is tried.
"""

from __future__ import annotations

import logging

import pytest
import torch
from transformers import DynamicCache

from tests.instrumentation import hooks_on
from tests.zoo.architectures import Architecture, zoo
from tests.zoo.comparison import difference
from tests.zoo.differential import observed, plain, subjects
from tests.zoo.modes import MODES, Interruption

CORE = (
    "greedy",
    "sampling",
    "several sequences",
    "left padding",
    "every output",
    "embeddings as prompt",
    "own processors and criteria",
    "exception inside",
    "no cache",
    "static cache",
    "chunked prefill",
    "beam search",
    "assisted",
    "own decoding loop",
)
SHARES = 4
ZOO = zoo()
# What does not run on a machine without an accelerator, or has left transformers for good.
NEVER_RUN = {
    "offloaded cache": "AssertionError",
    "contrastive": "ValueError",
    "DoLa": "ValueError",
}


def modes_of(architecture: Architecture, *, every: bool) -> list[str]:
    others = [mode for mode in MODES if mode not in CORE]
    place = ZOO.index(architecture)
    share = [mode for at, mode in enumerate(others) if (at + place) % SHARES == 0]
    return [mode for mode in MODES if every or mode in CORE or mode in share]


@pytest.mark.parametrize("architecture", ZOO, ids=str)
def test_a_generation_is_the_same_under_corevital(
    architecture: Architecture, pytestconfig: pytest.Config, caplog: pytest.LogCaptureFixture
) -> None:
    modes = modes_of(architecture, every=pytestconfig.getoption("zoo") == "full")
    alone, watched = subjects(architecture)
    expected = plain(alone, modes)
    with caplog.at_level(logging.WARNING, logger="corevital"):
        observations = observed(watched, modes)

    differences = {mode: difference(expected[mode], observations[mode].outcome) for mode in modes}
    assert {mode: found for mode, found in differences.items() if found is not None} == {}
    assert {mode: each.failures for mode, each in observations.items() if each.failures} == {}
    assert [each for each in caplog.records if each.name.startswith("corevital")] == []
    # transformers leaves hooks of its own.
    assert hooks_on(watched.model) == hooks_on(alone.model)


def test_every_architecture_is_tried_with_the_core_and_every_mode_with_its_share() -> None:
    assert set(CORE) <= set(MODES)
    for mode in MODES:
        tried = [each for each in ZOO if mode in modes_of(each, every=False)]
        assert len(tried) >= len(ZOO) // SHARES


def test_every_mode_generates_with_an_ordinary_model() -> None:
    alone, _ = subjects(Architecture("llama", "LlamaForCausalLM"))
    raised = {
        mode: each.error[0] for mode, each in plain(alone, MODES).items() if each.error is not None
    }
    assert raised == {**NEVER_RUN, "exception inside": Interruption.__qualname__}


def test_a_difference_is_found_wherever_it_is() -> None:
    def result(value: float) -> dict[str, object]:
        cache = DynamicCache()
        cache.update(torch.full((1, 2, 3, 4), value), torch.zeros(1, 2, 3, 4), 0)
        return {"sequences": torch.tensor([1, 2]), "scores": (torch.ones(2),), "cache": cache}

    same, other = result(1.0), result(2.0)
    assert difference(same, result(1.0)) is None
    assert difference(same, other) == "result.cache.layers[0].keys: 24 of 24 elements"
    assert difference(same, {**same, "sequences": torch.tensor([1, 3])}) is not None
    assert difference(same, {**same, "scores": (torch.ones(2, dtype=torch.float64),)}) is not None
    assert difference(same, {"sequences": torch.tensor([1, 2])}) is not None
    nan = torch.tensor([float("nan"), 1.0])
    assert difference(nan, nan.clone()) is None
