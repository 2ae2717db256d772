"""Flex attention, whose masks are functions and which returns no weights."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from tests.capture.observe import observe
from tests.capture.test_attention import assert_same
from tests.models import padded_prompts, tiny_model


@pytest.fixture
def without_compilation() -> Iterator[None]:
    """Its kernels need a GPU or a compiler; uncompiled, it computes the same from the same."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


@pytest.mark.usefixtures("without_compilation")
# What transformers and torch call of torch themselves, and that nothing is compiled.
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:flex_attention called without")
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_rows_and_prompt_are_those_of_eager_attention(family: str) -> None:
    """With padding, and with windows where the model has them."""
    arguments = {**padded_prompts([0, 4]), "do_sample": False, "max_new_tokens": 20}
    model = tiny_model(family, attn_implementation="flex_attention")
    plain = model.generate(**arguments)
    tokens, records = observe(model, **arguments)
    assert torch.equal(tokens, plain)
    expected_tokens, by_eager = observe(
        tiny_model(family, attn_implementation="eager"), **arguments
    )
    assert torch.equal(tokens, expected_tokens)
    for record, expected in zip(records, by_eager, strict=True):
        assert record.capture.attention.available, record.capture.attention.reason
        assert_same(record.attention, expected.attention)
        assert record.prompt is not None
        assert expected.prompt is not None
        assert record.prompt.basin is not None
        assert expected.prompt.basin is not None
        np.testing.assert_allclose(record.prompt.basin, expected.prompt.basin, rtol=1e-4, atol=1e-5)
