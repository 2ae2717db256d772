"""Attention statistics agree with the reference, on every way a backend may be given its input."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from corevital.capture import attention_block, chunk
from corevital.capture.attention import AttentionCall, AttentionReducer
from corevital.capture.attention_block import Block, WeighedRows
from corevital.capture.attention_scores import ScoreOptions
from corevital.record import AttentionColumns
from tests.capture.observe import observe
from tests.models import T5_HAS_ITS_OWN_ATTENTION, tiny_model, tiny_prompt


@pytest.fixture
def weightless_attention() -> Iterator[str]:
    """A backend that computes as ``eager`` does but, like ``sdpa``, returns no weights."""

    def attention(module: Any, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        eager = vars(__import__(type(module).__module__, fromlist=["eager_attention_forward"]))
        return eager["eager_attention_forward"](module, *args, **kwargs)[0], None

    name = "weightless"
    ALL_ATTENTION_FUNCTIONS.register(name, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(name, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    yield name
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        registry._global_mapping.pop(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_padding_counts_as_no_key_in_any_precision(backend: str, dtype: torch.dtype) -> None:
    prompt, padding = tiny_prompt(batch=2), 5
    mask = torch.ones_like(prompt)
    mask[0, :padding] = 0
    model: Any = tiny_model("llama", attn_implementation=backend)
    _, (record, _) = observe(
        model.to(dtype),
        input_ids=prompt,
        attention_mask=mask,
        do_sample=False,
        max_new_tokens=4,
        min_new_tokens=4,
    )
    assert record.attention is not None
    visible = prompt.shape[1] - padding + np.arange(record.steps)
    normalized = record.attention.entropy_mean / np.log2(visible)[:, None]
    np.testing.assert_allclose(record.attention.normalized_entropy_mean, normalized, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "qwen3", "gpt2"])
def test_rows_computed_from_queries_equal_the_weights_of_the_backend(
    family: str, weightless_attention: str
) -> None:
    """Grouped heads, windows, soft-capping, sinks and padding, each as its model has them."""
    prompt = tiny_prompt(batch=2)
    mask = torch.ones_like(prompt)
    mask[0, :4] = 0
    arguments = {
        "input_ids": prompt,
        "attention_mask": mask,
        "do_sample": False,
        "max_new_tokens": 20,
        "min_new_tokens": 20,
    }
    given, by_eager = observe(tiny_model(family, attn_implementation="eager"), **arguments)
    computed, records = observe(
        tiny_model(family, attn_implementation=weightless_attention), **arguments
    )
    assert torch.equal(computed, given)
    for record, expected in zip(records, by_eager, strict=True):
        assert_same(record.attention, expected.attention)
        assert record.prompt.basin is not None
        assert expected.prompt.basin is not None
        np.testing.assert_allclose(record.prompt.basin, expected.prompt.basin, rtol=1e-3, atol=1e-4)
        assert record.prompt.sparse is not None
        assert expected.prompt.sparse is not None
        assert record.prompt.sparse.total == expected.prompt.sparse.total


def assert_same(observed: AttentionColumns | None, expected: AttentionColumns | None) -> None:
    assert observed is not None
    assert expected is not None
    for name in ("entropy_mean", "entropy_min", "normalized_entropy_mean", "concentration_max"):
        np.testing.assert_allclose(
            getattr(observed, name), getattr(expected, name), rtol=1e-3, atol=1e-4
        )
    assert np.array_equal(observed.collapsed_heads, expected.collapsed_heads)
    assert np.array_equal(observed.heads, expected.heads)
    weight, expected_weight = observed.previous_token_weight, expected.previous_token_weight
    if weight is None or expected_weight is None:
        assert weight is expected_weight
        return
    np.testing.assert_allclose(weight.values, expected_weight.values, rtol=0, atol=1e-3)


def attend(
    reducer: AttentionReducer,
    step: int,
    keys: torch.Tensor,
    query: torch.Tensor,
    *,
    append_only: bool = True,
) -> None:
    reducer.begin_step(append_only=append_only)
    reducer.observe(AttentionCall(0, query, keys, None, None, {}))
    reducer.end_step(step)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("key_heads", [(2, 2, 2), (2, 4, 2)], ids=str)
def test_layers_multiplied_together_equal_layers_multiplied_alone(
    key_heads: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    keys = [torch.randn(2, heads, 30, 8, dtype=dtype) for heads in key_heads]
    queries = torch.randn(5, len(keys), 2, 4, 1, 8, dtype=dtype)
    statistics: list[tuple[torch.Tensor, int]] = []
    products: list[ScoreOptions] = []
    product = ScoreOptions.product

    def counted(options: ScoreOptions, *given: Any, **more: Any) -> torch.Tensor:
        products.append(options)
        return product(options, *given, **more)

    monkeypatch.setattr(ScoreOptions, "product", counted)
    for share in (attention_block.SHARE_COPIED, 10**9):
        monkeypatch.setattr(attention_block, "SHARE_COPIED", share)
        reducer = AttentionReducer()
        for step, of_layers in enumerate(queries, start=1):
            reducer.begin_step(append_only=True)
            for layer, (query, key) in enumerate(zip(of_layers, keys, strict=True)):
                call = AttentionCall(layer, query, key[:, :, : 10 + step], None, None, {})
                reducer.observe(call)
            reducer.end_step(step)
        products.clear()
        reducer.finish()
        statistics.append((reducer.chunks[0].statistics, len(products)))

    (together, fewer), (alone, all_of_them) = statistics
    assert all_of_them == len(keys)
    assert fewer == (1 if len(set(key_heads)) == 1 else len(keys))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_steps_reduced_together_equal_steps_reduced_alone() -> None:
    torch.manual_seed(0)
    keys = torch.randn(2, 2, 30, 8)
    queries = torch.randn(20, 2, 4, 1, 8)
    together, alone = AttentionReducer(), AttentionReducer()
    for step, query in enumerate(queries, start=1):
        seen = keys[:, :, : 10 + step]
        attend(together, step, seen, query)
        attend(alone, step, seen, query, append_only=False)
    for reducer in (together, alone):
        reducer.reduce()
    assert len(together.chunks) == 1
    assert len(alone.chunks) == 20
    separate = torch.cat([chunk.statistics for chunk in alone.chunks], dim=1)
    torch.testing.assert_close(together.chunks[0].statistics, separate, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["eager", "weightless"])
@pytest.mark.parametrize(
    "family",
    [
        "gemma2",
        "gpt_oss",
        "llama",
        pytest.param(
            "t5",
            marks=pytest.mark.skipif(
                T5_HAS_ITS_OWN_ATTENTION, reason="attention outside of the interface"
            ),
        ),
    ],
)
def test_layers_weighed_alone_equal_layers_weighed_together(
    family: str, backend: str, weightless_attention: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With windows, sinks and position bias, as each model has them."""
    implementation = weightless_attention if backend == "weightless" else backend
    model = tiny_model(family, attn_implementation=implementation)
    arguments = {"input_ids": tiny_prompt(batch=2), "do_sample": False, "max_new_tokens": 20}
    tokens, together = observe(model, **arguments)
    layers: set[int] = set()
    weigh = Block.weigh

    def noted(self: Block, *given: Any) -> Iterator[WeighedRows]:
        for rows in weigh(self, *given):
            layers.add(len(rows.entropy))
            yield rows

    monkeypatch.setattr(Block, "weigh", noted)
    monkeypatch.setattr(chunk, "_CACHED_BYTES", 1)
    again, alone = observe(model, **arguments)
    assert layers == {1}
    assert torch.equal(again, tokens)
    for record, expected in zip(alone, together, strict=True):
        assert_same(record.attention, expected.attention)
        if family == "t5":
            assert_same(record.cross_attention, expected.cross_attention)


def test_a_deeper_model_reads_its_keys_no_more_often() -> None:
    layers, steps, before = 16, 32, 4096
    keys = torch.randn(1, 2, before + steps, 4)
    reducer = AttentionReducer()
    for step in range(1, steps + 1):
        reducer.begin_step(append_only=True)
        seen = keys[:, :, : before + step]
        for layer in range(layers):
            query = torch.randn(1, 2, 1, 4)
            reducer.observe(AttentionCall(layer, query, seen, None, None, {}))
        reducer.end_step(step)
    reducer.finish()
    (chunk,) = reducer.chunks
    assert chunk.steps == tuple(range(1, steps + 1))


def test_rows_are_reduced_where_the_keys_fill_whole_lanes() -> None:
    keys = torch.randn(1, 2, 64, 4)
    reducer = AttentionReducer()
    for step, seen in enumerate(range(21, 65)):
        attend(reducer, step, keys[:, :, :seen], torch.randn(1, 2, 1, 4))
    reducer.finish()
    widths = [chunk.steps[-1] + 21 for chunk in reducer.chunks]
    assert widths == [21, 32, 64]


def test_cross_attention_is_not_reduced_more_often_for_its_keys_fill_whole_lanes() -> None:
    keys = torch.randn(1, 2, 32, 4)
    reducer = AttentionReducer(keys_per_step=0)
    for step in range(40):
        attend(reducer, step, keys, torch.randn(1, 2, 1, 4))
    reducer.finish()
    assert [len(chunk.steps) for chunk in reducer.chunks] == [32, 8]


def test_only_the_latest_keys_are_held() -> None:
    reducer = AttentionReducer()
    keys = torch.randn(1, 1, 12, 4)
    first = keys[:, :, :11].clone()
    held = weakref.ref(first)
    attend(reducer, 0, first, torch.randn(1, 1, 1, 4))
    del first
    assert held() is not None
    attend(reducer, 1, keys, torch.randn(1, 1, 1, 4))
    assert held() is None


def test_of_a_layer_that_attends_several_times_the_last_counts() -> None:
    torch.manual_seed(0)
    keys = torch.randn(2, 1, 2, 14, 8)
    queries = torch.randn(4, 2, 1, 4, 1, 8)
    several, last = AttentionReducer(), AttentionReducer()
    for step, calls in enumerate(queries):
        several.begin_step(append_only=True)
        for query, key in zip(calls, keys[:, :, :, : 11 + step], strict=True):
            several.observe(AttentionCall(0, query, key, None, None, {}))
        several.end_step(step)
        attend(last, step, keys[1, :, :, : 11 + step], calls[1])
    for reducer in (several, last):
        reducer.finish()
    torch.testing.assert_close(
        *(
            torch.cat([chunk.statistics for chunk in reducer.chunks], dim=1)
            for reducer in (several, last)
        )
    )


def test_keys_that_do_not_continue_those_before_do_not_mix_with_them() -> None:
    torch.manual_seed(0)
    keys, others = torch.randn(1, 1, 12, 4), torch.randn(1, 1, 7, 4)
    queries = torch.randn(3, 1, 2, 1, 4)
    given = [keys[:, :, :11], keys, others]
    together, alone = AttentionReducer(), AttentionReducer()
    for step in range(3):
        attend(together, step, given[step], queries[step])
        attend(alone, step, given[step], queries[step], append_only=False)
    together.reduce()
    observed = torch.cat([chunk.statistics for chunk in together.chunks], dim=1)
    expected = torch.cat([chunk.statistics for chunk in alone.chunks], dim=1)
    torch.testing.assert_close(observed, expected, rtol=1e-4, atol=1e-5)


def test_nan_in_a_row_is_seen_and_stays_in_its_layer() -> None:
    reducer = AttentionReducer()
    query, key = torch.randn(1, 2, 1, 4), torch.randn(1, 2, 6, 4)
    reducer.observe(AttentionCall(0, query, key, None, None, {}))
    reducer.observe(AttentionCall(1, query * float("nan"), key, None, None, {}))
    reducer.end_step(0)
    reducer.reduce()
    entropy = reducer.chunks[0].statistics[0, 0, :, 0]
    assert torch.isnan(entropy).tolist() == [False, True]


@pytest.mark.parametrize("append_only", [True, False])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_window_that_the_backend_applies_itself(steps: int, *, append_only: bool) -> None:
    """As flash attention does: no mask is given, and older keys are hidden all the same."""
    torch.manual_seed(0)
    window, keys = 4, torch.randn(1, 2, 12, 8)
    reducer, expected = AttentionReducer(), []
    for step in range(steps):
        query = torch.randn(1, 2, 1, 8)
        seen = keys[:, :, : 12 - steps + step + 1]
        options = {"sliding_window": window}
        reducer.begin_step(append_only=append_only)
        reducer.observe(AttentionCall(0, query, seen, None, None, options))
        reducer.end_step(step)
        newest = seen[:, :, -window:].double()
        weights = torch.softmax(query.double() @ newest.mT / 8**0.5, dim=-1)
        expected.append(-(weights * weights.log2()).sum(-1).mean())
    reducer.finish()
    entropy = torch.cat([chunk.statistics[0, :, 0, 0] for chunk in reducer.chunks])
    torch.testing.assert_close(entropy.double(), torch.stack(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shared", [True, False], ids=["one for all layers", "one for each"])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_position_bias_is_added_to_the_scores(rows: int, *, shared: bool) -> None:
    """Of two layers over three steps, reduced together, the bias growing with the keys."""
    torch.manual_seed(0)
    keys = [torch.randn(3, 2, 8, 4) for _ in range(2)]
    biases = [torch.randn(rows, 2, 1, 8) for _ in range(2)]
    reducer, expected = AttentionReducer(), []
    for step in range(1, 4):
        reducer.begin_step(append_only=True)
        queries = [torch.randn(3, 2, 1, 4) for _ in range(2)]
        seen = 5 + step
        parts = [bias[..., :seen] for bias in biases]
        for layer, query in enumerate(queries):
            bias = parts[0 if shared else layer]
            key = keys[layer][:, :, :seen]
            options = {"position_bias": bias, "scaling": 1.0}
            reducer.observe(AttentionCall(layer, query, key, None, None, options))
            weights = torch.softmax(query.double() @ key.double().mT + bias.double(), dim=-1)
            entropy = -(weights * weights.log2()).sum(-1).squeeze(-1).mean(-1)
            expected.append(entropy)
        reducer.end_step(step)
    reducer.finish()
    (chunk,) = reducer.chunks
    found = chunk.statistics[0].double()
    torch.testing.assert_close(found, torch.stack(expected).view(3, 2, 3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("masked", [True, False])
def test_cross_attention_has_the_same_keys_at_every_step(*, masked: bool) -> None:
    torch.manual_seed(0)
    key = torch.randn(2, 2, 7, 4)
    visible = torch.ones(2, 1, 1, 7, dtype=torch.bool)
    if masked:
        visible[0, ..., 5:] = False
    reducer, expected = AttentionReducer(keys_per_step=0), []
    for step, queries in enumerate((3, 1, 1)):
        reducer.begin_step(append_only=True)
        query = torch.randn(2, 2, queries, 4)
        mask = visible.clone() if masked else None
        reducer.observe(AttentionCall(0, query, key, mask, None, {"scaling": 1.0}))
        reducer.end_step(step)
        scores = query[:, :, -1:].double() @ key.double().mT
        weights = torch.softmax(scores.masked_fill(~visible, -torch.inf), dim=-1)
        entropy = -torch.xlogy(weights, weights).sum(-1).squeeze(-1) / math.log(2)
        count = visible.sum(-1).squeeze(-1).double()
        expected.append((entropy.mean(-1), (entropy / count.log2()).mean(-1)))
    reducer.finish()
    (chunk,) = reducer.chunks
    assert chunk.steps == (0, 1, 2)
    for at, (entropy, normalized) in enumerate(expected):
        torch.testing.assert_close(chunk.statistics[0, at, 0].double(), entropy, rtol=1e-4, atol=0)
        found = chunk.statistics[3, at, 0].double()
        torch.testing.assert_close(found, normalized, rtol=1e-4, atol=0)


def test_the_models_own_queries_are_let_go_once_the_step_ends() -> None:
    reducer, query = AttentionReducer(), torch.randn(2, 4, 1, 8)
    storage = StorageWeakRef(query.untyped_storage())
    attend(reducer, 0, torch.randn(2, 2, 5, 8), query)
    del query
    assert storage.expired()
    reducer.finish()
    assert len(reducer.chunks) == 1
