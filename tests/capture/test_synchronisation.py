"""Observing never makes the host wait for an accelerator while tokens are generated."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from corevital import GenerationRecord
from tests.capture.accelerator import (
    HOST,
    Waits,
    held_to_no_synchronisation,
    pretended_accelerator,
)
from tests.capture.contrastive_search import cached_search, encoder_decoder_search
from tests.capture.loops import library_loop
from tests.capture.observe import observing
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.zoo.architectures import Architecture

NEW_TOKENS = 40
"""More than are reduced together."""

Arguments = dict[str, Any]


def left_padded(model: GenerativeModel) -> Arguments:
    mask = torch.ones(3, 12, dtype=torch.long, device=model.device)
    mask[0, :5] = 0
    return {"input_ids": tiny_prompt(batch=3).to(model.device), "attention_mask": mask}


def static_cache(model: GenerativeModel, tokens: int = 0) -> Arguments:
    """A cache that was used before, and holds some tokens; forward passes are not compiled."""
    cache = StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad():
        model(tiny_prompt(tokens=8).to(model.device), past_key_values=cache)
        cache.reset()
        if tokens:
            model(tiny_prompt(tokens=tokens).to(model.device), past_key_values=cache)
    return {"past_key_values": cache, "disable_compile": True}


def continued_cache(model: GenerativeModel) -> Arguments:
    cache = DynamicCache()
    with torch.no_grad():
        model(tiny_prompt(tokens=8).to(model.device), past_key_values=cache)
    return {"past_key_values": cache}


def embeddings(model: GenerativeModel) -> Arguments:
    ids = tiny_prompt().to(model.device)
    return {"input_ids": None, "inputs_embeds": model.get_input_embeddings()(ids).detach()}


def decoding_loop(model: Any, input_ids: Tensor, **_: Any) -> Tensor:
    for _step in range(NEW_TOKENS):
        newest = model(input_ids).logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, newest), dim=-1)
    return input_ids


def contrastive_loop(model: Any, input_ids: Tensor, **_: Any) -> Tensor:
    for _step in range(NEW_TOKENS):
        logits = model(input_ids).logits[:, -1:] - 0.5 * model(input_ids[:, -2:]).logits[:, -1:]
        input_ids = torch.cat((input_ids, logits.argmax(-1)), dim=-1)
    return input_ids


@dataclass(frozen=True)
class Way:
    """A generation: its model, the arguments of ``generate``, and the settings of CoreVital."""

    family: str = "llama"
    arguments: Arguments = field(default_factory=dict)
    prepared: Callable[[GenerativeModel], Arguments] = lambda model: {}
    settings: Arguments = field(default_factory=dict)
    backend: str | None = None

    def model(self) -> GenerativeModel:
        """A model with random weights, on its default backend unless the way names one."""
        named: Arguments = {} if self.backend is None else {"attn_implementation": self.backend}
        return tiny_model(self.family, **named)

    def generate(
        self, model: GenerativeModel, held: Callable[[], Any]
    ) -> tuple[Waits, GenerationRecord]:
        """What of CoreVital waited, and the record of the first sequence."""
        defaults = {
            "input_ids": tiny_prompt().to(model.device),
            "do_sample": False,
            "max_new_tokens": NEW_TOKENS,
            "min_new_tokens": NEW_TOKENS,
        }
        arguments = defaults | self.arguments | self.prepared(model)
        with observing(**self.settings) as records, held() as waits:
            model.generate(**arguments)
        return waits, records[0]


WAYS = {
    "greedy": Way(),
    "eager": Way(backend="eager"),
    "absolute positions": Way("gpt2"),
    "soft-capping and sliding windows": Way("gemma2"),
    "attention sinks": Way("gpt_oss"),
    "mixture of experts": Way("mixtral"),
    "attention of its own": Way("bloom"),
    "state space": Way("mamba"),
    "sampling": Way(arguments={"do_sample": True, "top_k": 5, "num_return_sequences": 3}),
    "padded batch": Way(prepared=left_padded),
    "no cache": Way(arguments={"use_cache": False}),
    "static cache": Way(prepared=static_cache),
    "continued cache": Way(prepared=continued_cache),
    "embeddings": Way(prepared=embeddings),
    "prompt of several chunks": Way(
        prepared=lambda model: {"input_ids": tiny_prompt(tokens=700).to(model.device)},
        settings={"prompt_max_tokens": 700},
    ),
    "summary": Way(settings={"capture": "summary"}),
    "beam search": Way(prepared=left_padded, arguments={"num_beams": 3}),
    "beam sampling": Way(arguments={"num_beams": 2, "do_sample": True}),
    "prompt lookup": Way(arguments={"prompt_lookup_num_tokens": 3}),
    "guidance": Way(arguments={"guidance_scale": 1.5}),
    "chunked prefill": Way(prepared=left_padded, arguments={"prefill_chunk_size": 5}),
    "chunked prefill of a static cache": Way(
        prepared=static_cache, arguments={"prefill_chunk_size": 5}
    ),
    "custom loop": Way(arguments={"custom_generate": decoding_loop}),
    "custom loop that looks again": Way(arguments={"custom_generate": contrastive_loop}),
    "contrastive search": Way(prepared=left_padded, arguments={"custom_generate": cached_search}),
    "encoder-decoder": Way("bart", prepared=left_padded),
    "encoder-decoder, eager": Way("bart", backend="eager"),
    "encoder-decoder with a position bias": Way("t5", prepared=left_padded),
    "encoder-decoder, prompt lookup": Way("bart", arguments={"prompt_lookup_num_tokens": 3}),
    "encoder-decoder, custom loop": Way("bart", arguments={"custom_generate": library_loop}),
    "encoder-decoder, contrastive search": Way(
        "bart", arguments={"custom_generate": encoder_decoder_search}
    ),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_observing_does_not_wait(way: Way) -> None:
    waits, record = way.generate(way.model(), pretended_accelerator)
    assert waits.found == []
    assert record.capture.failures == 0
    assert waits.calls > 100, "CoreVital was not seen at work"


def test_impossible_tokens_are_reduced_there_as_on_a_cpu() -> None:
    model = tiny_model("llama")
    impossible = torch.arange(1, 40)
    with model.lm_head.register_forward_hook(
        lambda _module, _args, logits: logits.index_fill(-1, impossible, -math.inf)
    ):
        waits, record = Way().generate(model, pretended_accelerator)
        _, expected = Way().generate(model, partial(nullcontext, Waits("none")))
    assert waits.found == []
    assert record.logits is not None
    assert expected.logits is not None
    assert np.isfinite(record.logits.entropy).all()
    np.testing.assert_allclose(record.logits.entropy, expected.logits.entropy, rtol=1e-5)
    np.testing.assert_allclose(record.logits.surprisal, expected.logits.surprisal, rtol=1e-5)


def test_codebooks_do_not_wait_either() -> None:
    architecture = Architecture("dia", "DiaForConditionalGeneration")
    model, inputs = architecture.build_or_skip(), architecture.inputs(batch=1)
    with observing() as records, pretended_accelerator() as waits:
        model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS, guidance_scale=2.0)
    assert waits.found == []
    assert {record.capture.failures for record in records} == {0}
    assert waits.calls > 100, "CoreVital was not seen at work"


@pytest.mark.parametrize("tokens", [0, 8])
def test_a_static_cache_says_at_the_end_whether_the_prompt_continued_it(tokens: int) -> None:
    way = Way(prepared=partial(static_cache, tokens=tokens))
    _, record = way.generate(way.model(), pretended_accelerator)
    reason = "the prompt continues a cache" if tokens else None
    assert record.capture.prompt.reason == reason
    assert (record.prompt.surprisal is None) == bool(tokens)
    assert record.logits is not None


class Event:
    """Stands in for a CUDA event: reached once the next copies are under way."""

    recorded = 0

    def record(self, stream: Any) -> None:
        Event.recorded += 1
        self._at = Event.recorded

    def query(self) -> bool:
        return Event.recorded > self._at + 1

    def synchronize(self) -> None:
        """The generation is over: it is reached."""


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)


@pytest.mark.usefixtures("events")
@pytest.mark.parametrize("on", ["repetition", "non_finite", "risk", "repetition,non_finite,risk"])
def test_an_intervention_decides_by_what_has_arrived(on: str) -> None:
    way = Way(settings={"intervene": on, "intervene_threshold": 0.01})
    waits, record = way.generate(way.model(), pretended_accelerator)
    assert waits.found == []
    assert record.capture.failures == 0
    assert record.capture.stop_unavailable is None
    assert (record.stopped_early is not None) == ("risk" in on)


@pytest.mark.usefixtures("events")
def test_an_intervention_on_an_encoder_decoder_does_not_wait_either() -> None:
    way = Way("t5", settings={"intervene": "risk", "intervene_threshold": 0.01})
    waits, record = way.generate(way.model(), pretended_accelerator)
    assert waits.found == []
    assert record.capture.stop_unavailable is None
    assert record.stopped_early is not None


@pytest.mark.usefixtures("events")
def test_escalation_reads_what_has_arrived_and_does_not_wait_for_the_rest() -> None:
    way = Way(settings={"capture": "on_risk", "high_entropy_bits": 0.001})
    waits, record = way.generate(way.model(), pretended_accelerator)
    assert waits.found == []
    assert record.capture.failures == 0
    assert record.capture.full_from_step is not None


WAITING: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda values: values.sum().item(),
    "bool": lambda values: bool((values > 0).any()),
    "int": lambda values: int(values.sum()),
    "format": lambda values: f"{values.sum():.1f}",
    "tolist": lambda values: values.tolist(),
    "numpy": lambda values: values.numpy(),
    "joined there": lambda values: torch.cat([torch.ones(3), values]).tolist(),
    "cpu": lambda values: values.cpu(),
    "to": lambda values: values.to("cpu"),
    "to another type": lambda values: values.to(HOST, torch.float64),
    "nonzero": lambda values: values.nonzero(),
    "where": lambda values: torch.where(values > 0),
    "mask": lambda values: values[values > 0],
    "mask written": lambda values: values.index_put((values > 0,), torch.zeros(3)),
    "unique": lambda values: values.unique(),
    "equal": lambda values: torch.equal(values, values),
    "contains": lambda values: 3.5 in values,
    "list as index": lambda values: values[[0, 0]],
    "from a list": lambda values: values + torch.tensor([1.0], device=values.device),
    "brought there": lambda values: torch.ones(3).to(values.device) + values,
    "repeat": lambda values: values.repeat_interleave((values > 0).int()),
}
NOT_WAITING: dict[str, Callable[[Tensor], Any]] = {
    "masked fill": lambda values: values.clone().masked_fill_(values > 0, 1.0),
    "one value written": lambda values: values.index_put((values > 0,), torch.tensor(1.0)),
    "index": lambda values: values[values.long()],
    "slice": lambda values: values[:1].to(values.device, torch.float64),
    "brought there in time": lambda values: torch.ones(3).to(values.device, non_blocking=True),
    "kept on the host": lambda values: torch.ones(3).sum().item(),
    "joined on the host": lambda values: torch.cat([torch.ones(3), torch.ones(3)]).tolist(),
    "made there": lambda values: torch.zeros(3, device=values.device) + values,
    "nonzero of a fixed size": lambda values: torch.nonzero_static(values, size=4),
}


@pytest.mark.parametrize("wait", WAITING.values(), ids=WAITING)
def test_a_wait_is_found_whatever_it_is(wait: Callable[[Tensor], Any]) -> None:
    values = torch.ones(3)
    with pretended_accelerator(__name__) as waits:
        wait(values)
    assert waits.found


@pytest.mark.parametrize("compute", NOT_WAITING.values(), ids=NOT_WAITING)
def test_what_does_not_wait_is_not_found(compute: Callable[[Tensor], Any]) -> None:
    values = torch.ones(3)
    with pretended_accelerator(__name__) as waits:
        compute(values)
    assert waits.found == []


def test_cuda_is_watched_for_corevital_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    seen_by_the_model: set[str] = set()
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", asked.append)
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda *_: seen_by_the_model.update(asked[-1:]))
    waits, record = Way(settings={"prompt": False}).generate(model, held_to_no_synchronisation)
    assert asked == ["error", "default"] * waits.calls
    assert waits.calls > 100
    assert seen_by_the_model == {"default"}
    assert record.capture.failures == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_observing_does_not_wait_for_cuda(way: Way) -> None:
    model = way.model()
    torch.nn.Module.to(model, "cuda")
    # What CUDA and its libraries do once.
    way.generate(model, lambda: nullcontext(Waits("nothing")))
    waits, record = way.generate(model, held_to_no_synchronisation)
    assert waits.found == []
    assert record.capture.failures == 0
    assert waits.calls > 100
