"""What the application chose for its own numbers changes neither CoreVital's nor its records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import pytest
import torch

from corevital import GenerationRecord
from corevital.capture.autocast import unaffected_by_autocast
from corevital.record import Captured
from tests.capture.observe import observe
from tests.capture.recomputation import (
    attention_columns,
    hidden_columns,
    logit_columns,
    prompt_columns,
)
from tests.models import GenerativeModel, tiny_model, tiny_prompt

STEPS = 40
HALVES = (torch.bfloat16, torch.float16)
OUTPUTS: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def autocast_in_inference_mode() -> Iterator[None]:
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        yield


def padded(**arguments: Any) -> dict[str, Any]:
    """Two prompts, of which the first is the shorter one."""
    prompt = tiny_prompt(batch=2)
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    lengths = {"max_new_tokens": STEPS, "min_new_tokens": STEPS, "do_sample": False}
    return {"input_ids": prompt, "attention_mask": mask, **lengths, **arguments}


def product() -> torch.Tensor:
    return torch.full((2, 2), 1 + 2**-10) @ torch.eye(2)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_computation_keeps_its_precision_under_autocast(dtype: torch.dtype) -> None:
    with torch.autocast("cpu", dtype):
        assert product().dtype == dtype
        assert torch.equal(unaffected_by_autocast(product)(), torch.full((2, 2), 1 + 2**-10))
        assert product().dtype == dtype


def test_autocast_is_back_when_a_computation_fails() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(RuntimeError, match="shape"):
            unaffected_by_autocast(torch.mm)(torch.ones(2, 3), torch.ones(2, 3))
        assert torch.is_autocast_enabled("cpu")


def test_nothing_is_switched_on_where_there_was_no_autocast() -> None:
    assert not unaffected_by_autocast(torch.is_autocast_enabled)("cpu")
    assert not torch.is_autocast_enabled("cpu")


def assert_complete(record: GenerationRecord) -> None:
    capture = record.capture
    assert capture.failures == 0
    signals = (capture.logits, capture.hidden, capture.attention, capture.prompt)
    assert signals == (Captured(True),) * 4
    assert record.logits is not None
    assert np.isfinite(record.logits.entropy).all()
    assert record.hidden is not None
    assert not record.hidden.non_finite.any()
    attention = record.attention
    assert attention is not None
    assert not attention.non_finite.any()
    assert attention.previous_token_weight is not None
    assert np.isfinite(attention.previous_token_weight.values).all()
    prompt = record.prompt
    assert prompt.surprisal is not None
    assert len(prompt.surprisal) == record.prompt_tokens - 1
    for column in (prompt.surprisal, prompt.layer_transformation, prompt.basin):
        assert column is not None
        assert np.isfinite(column).all()
    assert prompt.sparse is not None
    assert prompt.sparse.kept > 0


CIRCUMSTANCES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "inference mode": torch.inference_mode,
    "autocast to bfloat16": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", torch.float16),
    "autocast in inference mode": autocast_in_inference_mode,
    "bfloat16 by default": lambda: default_type(torch.bfloat16),
    "float16 by default": lambda: default_type(torch.float16),
    "float64 by default": lambda: default_type(torch.float64),
}


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("circumstances", CIRCUMSTANCES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_tokens_and_a_complete_record(
    family: str, circumstances: str, backend: str
) -> None:
    model = tiny_model(family, attn_implementation=backend)
    with CIRCUMSTANCES[circumstances]():
        plain = model.generate(**padded())
        observed, records = observe(model, **padded())
    assert torch.equal(observed, plain)
    for record in records:
        assert_complete(record)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("surroundings", [nullcontext, torch.inference_mode])
def test_a_model_of_half_the_precision(
    dtype: torch.dtype, surroundings: Callable[[], AbstractContextManager[Any]]
) -> None:
    model: Any = tiny_model("llama")
    model.to(dtype)
    with surroundings():
        plain = model.generate(**padded())
        observed, records = observe(model, **padded())
    assert torch.equal(observed, plain)
    for record in records:
        assert_complete(record)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_statistics_are_those_of_the_outputs_and_no_coarser(dtype: torch.dtype) -> None:
    """Of the numbers that the model computed under autocast, recomputed in float64."""
    arguments = padded(input_ids=tiny_prompt(), attention_mask=None, **OUTPUTS)
    model = tiny_model("llama", attn_implementation="eager")
    with torch.autocast("cpu", dtype):
        outputs, (record,) = observe(model, **arguments)
        prompt = prompt_columns(model, arguments["input_ids"])

    def close(observed: Any, expected: Any) -> None:
        np.testing.assert_allclose(observed, expected, rtol=1e-4, atol=1e-4)

    for name, expected in logit_columns(outputs, 0, STEPS).items():
        close(getattr(record.logits, name), expected)
    hidden = hidden_columns(outputs, 0, STEPS)
    coarse = hidden.pop("lag_cosine")
    assert record.hidden is not None
    assert record.hidden.lag_cosine is not None
    np.testing.assert_allclose(record.hidden.lag_cosine, coarse, rtol=0, atol=3e-4)
    for name, expected in hidden.items():
        close(getattr(record.hidden, name), expected)
    attention = attention_columns(outputs, 0, STEPS, lambda _, keys: slice(0, keys))
    for name, expected in attention.items():
        if not name.endswith("_heads"):
            close(getattr(record.attention, name), expected)
    for name in ("surprisal", "layer_transformation", "basin"):
        close(getattr(record.prompt, name), prompt[name])


def test_default_types_change_no_value() -> None:
    model = tiny_model("mistral", attn_implementation="eager")
    _, usual = observe(model, **padded())
    with default_type(torch.bfloat16):
        _, unusual = observe(model, **padded())
    for left, right in zip(usual, unusual, strict=True):
        for column in ("entropy_mean", "normalized_entropy_mean", "concentration_max"):
            np.testing.assert_array_equal(
                getattr(left.attention, column), getattr(right.attention, column)
            )
        assert left.prompt.basin is not None
        assert right.prompt.basin is not None
        np.testing.assert_array_equal(left.prompt.basin, right.prompt.basin)


def with_large_scores(model: GenerativeModel) -> GenerativeModel:
    """Queries and keys so large that their product exceeds float16 until it is scaled."""
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "q_proj" in name or "k_proj" in name:
                weights.mul_(60)
    return model


def test_scores_that_exceed_float16_before_they_are_scaled_are_no_nan() -> None:
    model: Any = with_large_scores(tiny_model("llama"))
    arguments = padded(input_ids=tiny_prompt(), attention_mask=None)
    _, (expected,) = observe(model, **arguments)
    _, (record,) = observe(model.to(torch.float16), **arguments)
    assert_complete(record)
    assert expected.attention is not None
    assert record.attention is not None
    np.testing.assert_allclose(
        record.attention.entropy_mean[0, 0], expected.attention.entropy_mean[0, 0], atol=0.05
    )


def test_keys_of_a_given_cache_and_queries_of_autocast_differ_in_type() -> None:
    model, prompt = tiny_model("gpt2"), tiny_prompt()
    with torch.no_grad():
        cache = model(prompt, use_cache=True).past_key_values
    with torch.autocast("cpu", torch.bfloat16):
        _, (record,) = observe(
            model,
            input_ids=torch.cat((prompt, prompt[:, :3]), dim=1),
            past_key_values=cache,
            max_new_tokens=STEPS,
        )
    assert record.capture.failures == 0
    assert record.attention is not None
    assert not record.attention.non_finite.any()
