"""What a model gets when it looks its attention function up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import StoppingCriteria
from transformers.modeling_utils import AttentionInterface

from corevital.capture.attention import AttentionReducer
from corevital.capture.attention_functions import EAGER_IS_LOOKED_UP, LOOKUP
from tests.capture.observe import observe
from tests.models import tiny_model, tiny_prompt

STEPS = 3


@pytest.fixture
def sdpa(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The library's own function, which is put back after the test."""
    own = AttentionInterface()["sdpa"]
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", own)
    return own


def test_a_forward_pass_looks_its_attention_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lookup = getattr(AttentionInterface, LOOKUP)
    looked_up: list[Any] = []

    def counted(self: AttentionInterface, *args: Any) -> Any:
        looked_up.append(args[0])
        return lookup(self, *args)

    monkeypatch.setattr(AttentionInterface, LOOKUP, counted)
    model = tiny_model("llama", num_hidden_layers=4)
    _, (record,) = observe(model, inputs=tiny_prompt(), min_new_tokens=STEPS, max_new_tokens=STEPS)
    assert looked_up == ["sdpa"] * STEPS
    assert record.attention is not None
    assert not np.isnan(record.attention.entropy_mean).any()


@pytest.mark.parametrize("capture", ["summary", "full"])
def test_a_function_registered_between_two_tokens_serves_the_next(
    sdpa: Callable[..., Any], capture: str
) -> None:
    calls: list[str] = []

    def other(*args: Any, **kwargs: Any) -> Any:
        calls.append("other")
        return sdpa(*args, **kwargs)

    class Registers(StoppingCriteria):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
        ) -> torch.BoolTensor:
            calls.append("token")
            AttentionInterface.register("sdpa", other)
            return torch.zeros(len(input_ids), dtype=torch.bool)  # type: ignore[return-value]

    model = tiny_model("llama", num_hidden_layers=2)
    length = {"min_new_tokens": STEPS, "max_new_tokens": STEPS}
    _, (record,) = observe(
        model,
        {"capture": capture},
        inputs=tiny_prompt(),
        stopping_criteria=[Registers()],
        **length,
    )
    assert calls == ["token", "other", "other", "token", "other", "other", "token"]
    assert record.attention is not None
    assert not np.isnan(record.attention.entropy_mean[:, -1]).any()


@pytest.mark.parametrize(("capture", "layers"), [("summary", [1]), ("full", [0, 1])])
def test_of_functions_that_call_one_another_the_outer_one_is_seen(
    sdpa: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, capture: str, layers: list[int]
) -> None:
    seen: list[int] = []
    see = AttentionReducer.keep_row

    def noted(self: AttentionReducer, position: int, *given: Any) -> None:
        seen.append(position)
        see(self, position, *given)

    def outer(*args: Any, **kwargs: Any) -> Any:
        asked = ("inner", sdpa) if EAGER_IS_LOOKED_UP else ("inner",)
        return getattr(AttentionInterface(), LOOKUP)(*asked)(*args, **kwargs)

    monkeypatch.setattr(AttentionReducer, "keep_row", noted)
    monkeypatch.setitem(AttentionInterface._global_mapping, "inner", sdpa)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", outer)
    observe(
        tiny_model("llama", num_hidden_layers=2),
        {"capture": capture},
        inputs=tiny_prompt(),
        min_new_tokens=STEPS,
        max_new_tokens=STEPS,
    )
    assert seen == layers * STEPS


@pytest.mark.parametrize("whole_passes", [0, 1], ids=["of the prompt", "of the second token"])
@pytest.mark.parametrize("family", ["llama", "bart"])
def test_a_function_that_returns_too_little_fails_as_without_corevital(
    monkeypatch: pytest.MonkeyPatch, family: str, whole_passes: int, sdpa: Callable[..., Any]
) -> None:
    calls = [0]

    def without_weights(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        result = sdpa(module, *args, **kwargs)
        return result if calls[0] <= whole_passes * per_pass else result[:1]

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", without_weights)
    model = tiny_model(family)
    per_pass = sum(1 for name, _ in model.named_modules() if name.endswith("attn"))
    with pytest.raises(ValueError, match="not enough values") as plain:
        model.generate(inputs=tiny_prompt(), max_new_tokens=STEPS)
    calls[0] = 0
    with pytest.raises(ValueError, match="not enough values") as observed:
        observe(model, inputs=tiny_prompt(), max_new_tokens=STEPS)
    assert str(observed.value) == str(plain.value)


def test_between_two_forward_passes_a_lookup_finds_the_function_itself(
    sdpa: Callable[..., Any],
) -> None:
    found: list[Any] = []

    class LooksUp(StoppingCriteria):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
        ) -> torch.BoolTensor:
            named = {"attn_implementation": "sdpa", "default": sdpa}
            asked = named if EAGER_IS_LOOKED_UP else {"key": "sdpa"}
            found.append(getattr(AttentionInterface(), LOOKUP)(**asked))
            return torch.zeros(len(input_ids), dtype=torch.bool)  # type: ignore[return-value]

    observe(
        tiny_model("llama"),
        inputs=tiny_prompt(),
        stopping_criteria=[LooksUp()],
        max_new_tokens=STEPS,
        min_new_tokens=STEPS,
    )
    assert found == [sdpa] * STEPS


def test_what_a_layer_outgrows_is_let_go_before_the_next_layer(
    sdpa: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[StorageWeakRef] = []
    alive: list[int] = []

    def noting(module: Any, query: Any, key: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        alive.append(sum(not each.expired() for each in seen))
        seen.append(StorageWeakRef(key.untyped_storage()))
        return sdpa(module, query, key, *args, **kwargs)

    layers = 4
    model = tiny_model("llama", num_hidden_layers=layers)
    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", noting)
    observe(model, inputs=tiny_prompt(), min_new_tokens=STEPS, max_new_tokens=STEPS)
    # Those of every layer, of which one has been replaced and not yet let go.
    assert alive == [*range(layers), *[layers] * layers * (STEPS - 1)]
