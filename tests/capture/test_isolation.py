"""Runs never see each other, and leave nothing behind."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from transformers import LogitsProcessor

from corevital import GenerationRecord
from corevital.capture.active import active_run
from corevital.capture.attention import AttentionCall, AttentionReducer
from corevital.capture.run import GenerationRun
from tests.capture.observe import observe, observing
from tests.models import GenerativeModel, tiny_model, tiny_prompt


def hooks(model: torch.nn.Module) -> int:
    return sum(
        len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()
    )


def same(left: GenerationRecord, right: GenerationRecord) -> bool:
    assert left.logits is not None
    assert right.logits is not None
    assert left.hidden is not None
    assert right.hidden is not None
    assert left.attention is not None
    assert right.attention is not None
    pairs = (
        (left.logits.entropy, right.logits.entropy),
        (left.hidden.l2_norm, right.hidden.l2_norm),
        (left.attention.entropy_mean, right.attention.entropy_mean),
    )
    return np.array_equal(left.token_ids, right.token_ids) and all(
        np.allclose(a, b, rtol=1e-3, atol=1e-4) for a, b in pairs
    )


def test_threads_on_one_model_get_their_own_records() -> None:
    model = tiny_model("llama")
    prompts = [tiny_prompt(tokens=6 + place, seed=place) for place in range(4)]
    arguments = {"do_sample": False, "max_new_tokens": 30, "min_new_tokens": 30}
    expected = {
        6 + place: observe(model, input_ids=prompt, **arguments)[1][0]
        for place, prompt in enumerate(prompts)
    }
    with observing() as records:
        barrier = threading.Barrier(len(prompts))

        def generate(prompt: torch.Tensor) -> None:
            barrier.wait()
            for _ in range(3):
                model.generate(input_ids=prompt, **arguments)

        threads = [threading.Thread(target=generate, args=(prompt,)) for prompt in prompts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(records) == 12
    assert all(same(record, expected[record.prompt_tokens]) for record in records)
    assert hooks(model) == 0


class GeneratesInside(LogitsProcessor):
    """Generates with the same model while that generates."""

    def __init__(self, model: GenerativeModel, arguments: dict[str, Any]) -> None:
        self._model = model
        self._arguments = arguments
        self._inside = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not self._inside and input_ids.shape[1] == 15:
            self._inside = True
            self._model.generate(**self._arguments)
        return scores


def test_nested_generations_get_their_own_records() -> None:
    model = tiny_model("llama")
    inner = {"input_ids": tiny_prompt(tokens=7, seed=9), "max_new_tokens": 9, "do_sample": False}
    outer = {"input_ids": tiny_prompt(), "max_new_tokens": 12, "do_sample": False}
    _, (alone_inner,) = observe(model, **inner)
    _, (alone_outer,) = observe(model, **outer)
    with observing() as records:
        model.generate(**outer, logits_processor=[GeneratesInside(model, inner)])
    inside, around = records
    assert same(inside, alone_inner)
    assert same(around, alone_outer)


def test_nothing_is_left_on_the_model() -> None:
    model = tiny_model("llama")
    before = {name: dict(vars(module)) for name, module in model.named_modules()}
    observe(model, input_ids=tiny_prompt(), max_new_tokens=3)
    after = {name: dict(vars(module)) for name, module in model.named_modules()}
    assert [name for name in before if before[name].keys() != after[name].keys()] == []
    assert hooks(model) == 0
    assert active_run.get() is None


def test_a_forward_pass_outside_generate_is_not_observed() -> None:
    model = tiny_model("llama")
    with observing() as records, torch.no_grad():
        model(tiny_prompt())
    assert records == []


class CopiesTheModel(LogitsProcessor):
    """Copies and pickles the model in the middle of its generation."""

    def __init__(self, model: GenerativeModel) -> None:
        self._model = model
        self.copies: list[GenerativeModel] = []

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not self.copies:
            self.copies.append(copy.deepcopy(self._model))
            self.copies.append(pickle.loads(pickle.dumps(self._model)))
        return scores


def test_a_model_can_be_copied_and_pickled_while_it_generates() -> None:
    model = tiny_model("llama")
    plain = model.generate(tiny_prompt(), max_new_tokens=5, do_sample=False)
    copier = CopiesTheModel(model)
    observe(
        model, inputs=tiny_prompt(), max_new_tokens=5, do_sample=False, logits_processor=[copier]
    )
    for twin in copier.copies:
        assert torch.equal(twin.generate(tiny_prompt(), max_new_tokens=5, do_sample=False), plain)


@pytest.mark.parametrize("rows", [1, 3], ids=["one row", "rows of one prompt"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_prompt_is_not_kept_alive(
    attention: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the prefill, the prompt's hidden states, queries and weights are gone."""
    of_prompt: list[StorageWeakRef] = []
    alive: list[int] = []
    observe_attention, see_layer = AttentionReducer.observe, GenerationRun.layer_returns

    def note(*tensors: torch.Tensor | None) -> None:
        of_prompt.extend(
            StorageWeakRef(each.untyped_storage())
            for each in tensors
            if each is not None and 400 in each.shape
        )

    def noted_attention(self: AttentionReducer, call: AttentionCall) -> None:
        note(call.query, call.weights)
        observe_attention(self, call)

    def noted_layer(self: GenerationRun, module: Any, args: Any, output: Any) -> None:
        note(output[0] if isinstance(output, tuple) else output)
        see_layer(self, module, args, output)

    monkeypatch.setattr(AttentionReducer, "observe", noted_attention)
    monkeypatch.setattr(GenerationRun, "layer_returns", noted_layer)

    class Counts(LogitsProcessor):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor
        ) -> torch.FloatTensor:
            alive.append(sum(not each.expired() for each in of_prompt))
            return scores

    model = tiny_model("llama", attn_implementation=attention)
    prompt = tiny_prompt(tokens=400).repeat(rows, 1)
    observe(model, inputs=prompt, max_new_tokens=1, logits_processor=[Counts()])
    layers = model.config.num_hidden_layers
    assert len(of_prompt) == layers * (3 if attention == "eager" else 2)
    assert alive == [0]


def test_a_run_is_freed_without_the_garbage_collector() -> None:
    model = tiny_model("llama")
    runs: list[weakref.ref[GenerationRun]] = []

    class Notes(LogitsProcessor):
        def __call__(
            self, input_ids: torch.LongTensor, scores: torch.FloatTensor
        ) -> torch.FloatTensor:
            run = active_run.get()
            assert run is not None
            runs.append(weakref.ref(run))
            return scores

    gc.disable()
    try:
        observe(model, inputs=tiny_prompt(), max_new_tokens=3, logits_processor=[Notes()])
        assert [run() for run in runs] == [None, None, None]
    finally:
        gc.enable()
