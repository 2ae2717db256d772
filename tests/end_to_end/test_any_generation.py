"""Any way of generating, with any setting: the same outcome, and records without a failure.

The other tests each follow one thing. Here are combinations that nobody thought of, the same ones
at every run: ``--combinations`` of them for each way of decoding.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from corevital import GenerationRecord
from corevital.capture.chunk import MOST_STEPS
from tests.capture.contrastive_search import (
    cached_search,
    encoder_decoder_search,
    uncached_search,
)
from tests.capture.loops import library_loop
from tests.capture.observe import everything_equal, observing
from tests.capture.teacher_forcing import forced_surprisal
from tests.models import FAMILIES, GenerativeModel, tiny_model, tiny_prompt
from tests.zoo.differential import quiet

Arguments = dict[str, Any]


def own_loop(model: Any, input_ids: Tensor, stopping_criteria: Any, **_: Any) -> Tensor:
    while True:
        newest = model(input_ids).logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, newest), dim=-1)
        if stopping_criteria(input_ids, None).all():
            return input_ids


def embedded(model: GenerativeModel, prompt: Tensor) -> Arguments:
    return {"inputs_embeds": model.get_input_embeddings()(prompt).detach()}


def searching(model: GenerativeModel, prompt: Tensor) -> Arguments:
    search = encoder_decoder_search if model.config.is_encoder_decoder else cached_search
    return {"inputs": prompt, "custom_generate": search}


def assisted(model: GenerativeModel, prompt: Tensor) -> Arguments:
    # An assistant keeps what it learned of its success, so each call gets one of its own.
    return {"inputs": prompt[:1], "assistant_model": copy.deepcopy(model)}


def asking(rows: int | None = None, **arguments: Any) -> Callable[[GenerativeModel, Tensor], Any]:
    return lambda model, prompt: {"inputs": prompt[:rows], **arguments}


DECODINGS: Final[Mapping[str, Callable[[GenerativeModel, Tensor], Arguments]]] = {
    "greedy": asking(),
    "sampling": asking(do_sample=True),
    "several sequences": asking(do_sample=True, num_return_sequences=3),
    "beams": asking(num_beams=3, num_return_sequences=2),
    "sampled beams": asking(num_beams=2, do_sample=True),
    "prompt lookup": asking(1, prompt_lookup_num_tokens=3),
    "assisted": assisted,
    "chunks": asking(prefill_chunk_size=5),
    "guided": asking(guidance_scale=1.7),
    "static cache": asking(cache_implementation="static"),
    "no cache": asking(use_cache=False),
    "embeddings": embedded,
    "the library's loop": asking(custom_generate=library_loop),
    "own loop": asking(custom_generate=own_loop),
    "contrastive search": searching,
    "contrastive search without a cache": asking(custom_generate=uncached_search),
}
EVERY_OUTPUT: Final = {
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
}
# Around what is reduced together.
STEPS: Final = tuple(
    sorted({1, 2, 9, *(n * MOST_STEPS + more for n in (1, 2) for more in (-1, 0, 1))})
)


@dataclass(frozen=True)
class Generation:
    """One call of ``generate``, and CoreVital's settings for it."""

    family: str
    decoding: str
    backend: str | None
    batch: int
    prompt: int
    padding: int
    steps: int
    ends_early: bool
    every_output: bool
    capture: str
    prompt_telemetry: bool
    intervene: str | None

    def arguments(self, model: GenerativeModel) -> Arguments:
        prompt = tiny_prompt(self.batch, self.prompt, seed=self.steps)
        arguments = DECODINGS[self.decoding](model, prompt) | {"max_new_tokens": self.steps}
        if not self.ends_early:
            arguments["min_new_tokens"] = self.steps
        if self.every_output:
            arguments |= EVERY_OUTPUT
        if 0 < self.padding < self.prompt and "inputs" in arguments:
            mask = torch.ones(arguments["inputs"].shape, dtype=torch.long)
            mask[0, : self.padding] = 0
            arguments["attention_mask"] = mask
        return arguments

    def settings(self) -> Arguments:
        # A bound that some of these models are above and some are not.
        chosen = {
            "capture": self.capture,
            "prompt": self.prompt_telemetry,
            "high_entropy_bits": 4.0,
        }
        return chosen if self.intervene is None else {**chosen, "intervene": self.intervene}

    def outcome(self, model: GenerativeModel) -> tuple[Any, Exception | None]:
        """What was returned or raised."""
        arguments = self.arguments(model)
        torch.manual_seed(self.batch)
        try:
            with quiet():
                return model.generate(**arguments), None
        except Exception as error:
            return None, error

    def tokens(self, result: Any) -> Tensor:
        """The generated tokens ``[B, S]`` of what was returned."""
        sequences: Tensor = getattr(result, "sequences", result)
        if build(self.family, self.backend).config.is_encoder_decoder:
            return sequences[:, 1:]
        return sequences if self.decoding == "embeddings" else sequences[:, self.prompt :]

    def can_be_forced(self, model: GenerativeModel) -> bool:
        """Whether one forward pass over what is returned shows the same."""
        whole = self.padding == 0 and self.decoding != "embeddings"
        # With every output, Falcon computes something else than without.
        return whole and not self.every_output and not model.config.is_encoder_decoder


@cache
def build(family: str, backend: str | None) -> GenerativeModel:
    named: Arguments = {} if backend is None else {"attn_implementation": backend}
    return tiny_model(family, **named)


def assert_complete(record: GenerationRecord, tokens: list[int]) -> None:
    """The record has all that its report says, of every step."""
    capture = record.capture
    assert capture.failures == 0
    assert record.token_ids.tolist() == tokens[: record.steps]
    assert len(record.step_time_ns) == record.steps
    assert capture.logits.available == (record.logits is not None)
    assert capture.hidden.available == (record.hidden is not None)
    assert capture.attention.available == (record.attention is not None)
    if record.logits is not None:
        assert np.isfinite(record.logits.entropy).all()
        assert np.isfinite(record.logits.surprisal).all()
    if record.capture.mode == "full" and record.hidden is not None:
        assert np.isfinite(record.hidden.l2_norm).all()
    if record.capture.mode == "full" and record.attention is not None:
        assert np.isfinite(record.attention.entropy_mean).all()


WITH: Final = {
    # Whisper takes no tokens.
    "family": st.sampled_from([family for family in FAMILIES if family != "whisper"]),
    "backend": st.sampled_from([None, "eager"]),
    "batch": st.sampled_from([1, 2, 8]),
    "prompt": st.sampled_from([1, 2, 12, 33]),
    "padding": st.sampled_from([0, 0, 5]),
    "steps": st.sampled_from(STEPS),
    "ends_early": st.booleans(),
    "every_output": st.booleans(),
    "capture": st.sampled_from(["full", "summary", "on_risk"]),
    "prompt_telemetry": st.booleans(),
    # What stops none of these.
    "intervene": st.sampled_from([None, "non_finite"]),
}


@pytest.mark.parametrize("decoding", DECODINGS)
def test_a_generation_is_the_same_and_its_records_are_complete(
    decoding: str, pytestconfig: pytest.Config, caplog: pytest.LogCaptureFixture
) -> None:
    observed: list[Generation] = []

    @settings(
        max_examples=pytestconfig.getoption("combinations"),
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.builds(Generation, decoding=st.just(decoding), **WITH))
    def check(generation: Generation) -> None:
        model = build(generation.family, generation.backend)
        expected, error = generation.outcome(model)
        with observing(**generation.settings()) as records:
            found, raised = generation.outcome(model)
        assert (type(raised), str(raised)) == (type(error), str(error))
        assert [each.message for each in caplog.records if each.name.startswith("corevital")] == []
        if error is not None:
            return
        assert everything_equal(found, expected)
        if not records[0].observed:
            return
        observed.append(generation)
        tokens = generation.tokens(found)
        for record, row in zip(records, tokens.tolist(), strict=True):
            assert_complete(record, row)
        if generation.can_be_forced(model):
            for record, sequence in zip(records, found, strict=True):
                until = generation.prompt + record.steps
                bits = forced_surprisal(model, sequence[:until], generation.prompt)
                assert record.logits is not None
                np.testing.assert_allclose(record.logits.surprisal, bits, atol=0.02)

    with caplog.at_level(logging.WARNING, logger="corevital"):
        check()
    assert observed
