"""A calibration knows the model that it was made for, wherever that lies."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from corevital.calibration.identity import ModelIdentity
from corevital.capture.observation import describe_model
from tests.calibration.runs import MODEL
from tests.models import HIDDEN, LAYERS, VOCABULARY, tiny_model

IDENTITY = ModelIdentity.of(MODEL)


@pytest.mark.parametrize("name", ["org/model", "model", "/models/model", "C:\\models\\model"])
def test_of_a_name_the_last_part_counts(name: str) -> None:
    assert IDENTITY.matches(replace(MODEL, name=name))
    assert ModelIdentity.of(replace(MODEL, name=name)).matches(MODEL)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "org/other"}, "its name is org/other, not org/model"),
        ({"family": "qwen2"}, "its family is qwen2, not llama"),
        ({"architecture": "X"}, "its architecture is X, not LlamaForCausalLM"),
        ({"layers": 5}, "its number of layers is 5, not 4"),
        ({"hidden_size": 64}, "its hidden size is 64, not 32"),
        ({"vocabulary_size": None}, "its vocabulary size is None, not 128"),
    ],
)
def test_what_differs_is_said(change: dict[str, Any], said: str) -> None:
    other = replace(MODEL, **change)

    assert not IDENTITY.matches(other)
    assert IDENTITY.mismatch(other) == f"made for org/model, and this is another model: {said}"


def test_everything_that_differs_is_said_in_one_sentence() -> None:
    mismatch = IDENTITY.mismatch(replace(MODEL, layers=5, hidden_size=64))

    assert mismatch is not None
    assert "layers is 5, not 4, its hidden size is 64" in mismatch


@pytest.mark.parametrize("family", ["llama", "gpt2", "t5", "mamba"])
def test_models_tell_their_sizes(family: str) -> None:
    identity = ModelIdentity.of(describe_model(tiny_model(family)))

    sizes = (identity.layers, identity.hidden_size, identity.vocabulary_size)
    assert sizes == (LAYERS, HIDDEN, VOCABULARY)
