"""Assisted decoding: every accepted token has the record of its own position."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from corevital import GenerationRecord
from corevital.capture.assisted_run import AssistedRun
from corevital.capture.plan import CapturePlan
from corevital.record import CaptureMode
from tests.capture.agreement import close
from tests.capture.observe import everything_equal, observe
from tests.capture.recomputation import prompt_columns
from tests.capture.teacher_forcing import assert_records_equal_forced
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel

PROMPT = 12
TOKENS = 40


def assisted(
    model: GenerativeModel, settings: dict[str, Any] | None = None, /, **arguments: Any
) -> tuple[torch.Tensor, GenerationRecord]:
    """Sequences and record; with CoreVital and without, the sequences are the same."""
    asked = {"inputs": tiny_prompt(), "max_new_tokens": TOKENS} | arguments
    # An assistant keeps what it learned of its success, so each call gets one of its own.
    torch.manual_seed(5)
    plain = model.generate(**copy.deepcopy(asked))
    random_state = torch.get_rng_state()
    torch.manual_seed(5)
    result, (record,) = observe(model, settings, **copy.deepcopy(asked))
    assert everything_equal(result, plain)
    assert torch.equal(torch.get_rng_state(), random_state)
    return getattr(result, "sequences", result), record


def accepted_together(record: GenerationRecord) -> list[int]:
    """How many tokens came of each forward pass: those have the same time."""
    return np.unique(record.step_time_ns, return_counts=True)[1].tolist()


def disagreeing(backend: str = "sdpa") -> GenerativeModel:
    """An assistant with the model's first layer only: some of its guesses are right."""
    assistant = tiny_model("llama", num_hidden_layers=1, attn_implementation=backend)
    assistant.load_state_dict(tiny_model("llama").state_dict(), strict=False)
    return assistant


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("sampling", [False, True])
def test_an_assistant_that_is_often_wrong(backend: str, sampling: bool) -> None:
    model = tiny_model("llama", attn_implementation=backend)
    sequences, record = assisted(model, assistant_model=disagreeing(), do_sample=sampling)
    assert record.steps == sequences.shape[1] - PROMPT
    together = accepted_together(record)
    assert 1 in together
    assert max(together) > 1
    assert_records_equal_forced([record], model, sequences, PROMPT)


def test_an_assistant_that_is_always_right() -> None:
    model = tiny_model("llama")
    assistant = tiny_model("llama")
    assistant.generation_config.assistant_confidence_threshold = 0.0
    sequences, record = assisted(model, assistant_model=assistant)
    assert max(accepted_together(record)) > 4
    assert_records_equal_forced([record], model, sequences, PROMPT)


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3", "mixtral"])
def test_prompt_lookup(family: str) -> None:
    model = tiny_model(family)
    prompt = tiny_prompt(tokens=6).repeat(1, 3)
    sequences, record = assisted(model, inputs=prompt, prompt_lookup_num_tokens=3)
    assert len(accepted_together(record)) < record.steps
    assert_records_equal_forced([record], model, sequences, prompt.shape[1])


def test_early_exit_drafts_with_the_layers_of_the_model_itself() -> None:
    model = tiny_model("llama")
    sequences, record = assisted(model, assistant_early_exit=2)
    assert len(accepted_together(record)) < record.steps == TOKENS
    assert_records_equal_forced([record], model, sequences, PROMPT)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_sliding_window(backend: str) -> None:
    model = tiny_model("mistral", attn_implementation=backend)
    window = model.config.sliding_window
    sequences, record = assisted(model, assistant_model=tiny_model("mistral"))
    assert_records_equal_forced(
        [record],
        model,
        sequences,
        PROMPT,
        visible=lambda _step, keys: slice(max(keys - window, 0), keys),
    )


def test_logits_are_the_models_own_though_processors_write_into_them() -> None:
    model = tiny_model("llama")
    sequences, record = assisted(
        model, prompt_lookup_num_tokens=3, repetition_penalty=1.5, temperature=0.5, do_sample=True
    )
    assert_records_equal_forced([record], model, sequences, PROMPT)


def test_the_end_token_ends_the_record() -> None:
    model = tiny_model("llama")
    free, _ = assisted(model, assistant_model=tiny_model("llama"))
    end = int(free[0, PROMPT + 17])
    sequences, record = assisted(model, assistant_model=tiny_model("llama"), eos_token_id=end)
    expected = free[0, PROMPT:].tolist().index(end) + 1
    assert record.steps == expected == sequences.shape[1] - PROMPT
    assert record.finish_reason == "stop"
    assert_records_equal_forced([record], model, sequences, PROMPT)


def test_the_prompt_is_seen_without_the_candidates_behind_it() -> None:
    model = tiny_model("llama")
    prompt = tiny_prompt(tokens=6).repeat(1, 3)
    _, record = assisted(model, inputs=prompt, prompt_lookup_num_tokens=3)
    model.set_attn_implementation("eager")
    expected = prompt_columns(model, prompt)
    for name in ("surprisal", "layer_transformation", "basin"):
        close(getattr(record.prompt, name), expected[name])


def test_every_output_stays_as_it_was() -> None:
    _, record = assisted(
        tiny_model("llama", attn_implementation="eager"),
        assistant_model=disagreeing("eager"),
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert record.steps == TOKENS


@pytest.mark.parametrize("mode", ["summary", "on_risk", "off"])
def test_the_other_capture_modes(mode: str) -> None:
    model = tiny_model("llama")
    arguments = {"assistant_model": tiny_model("llama")}
    sequences, record = assisted(model, {"capture": mode}, **arguments)
    assert record.capture.mode is CaptureMode(mode)
    assert record.token_ids.tolist() == sequences[0, PROMPT:].tolist()
    if mode == "off":
        assert not record.observed
        assert record.capture.logits.reason == "capture is off"
        assert len(accepted_together(record)) < record.steps
    else:
        _, full = assisted(model, **arguments)
        assert record.logits is not None
        assert full.logits is not None
        close(record.logits.surprisal, full.logits.surprisal)


def test_forward_passes_over_other_tokens_are_not_taken_for_those_of_the_accepted() -> None:
    model = tiny_model("llama")
    run = AssistedRun(model, None, CapturePlan(CaptureMode.SUMMARY), PROMPT)
    prompt = tiny_prompt()
    logits = torch.zeros(1, 1, 128)
    run.forward_starts((), {"input_ids": prompt})
    run.forward_returns(type("Output", (), {"logits": logits}))
    run.token_chosen(torch.cat((prompt, torch.tensor([[7]])), dim=1))
    run.forward_starts((), {"input_ids": torch.tensor([[8]])})
    run.forward_returns(type("Output", (), {"logits": logits}))
    run.token_chosen(torch.cat((prompt, torch.tensor([[7, 9]])), dim=1))
    run.finish()
    assert run.untied == "the forward passes are not those of the accepted tokens"
    assert run.logits.result() is None


def test_the_real_model_with_prompt_lookup(smollm2: LoadedModel) -> None:
    inputs = smollm2.chat("Repeat after me: one two three four, one two three four, one two")
    sequences, record = assisted(
        smollm2.model, inputs=None, **inputs, prompt_lookup_num_tokens=4, do_sample=False
    )
    assert max(accepted_together(record)) > 1
    assert_records_equal_forced([record], smollm2.model, sequences, inputs["input_ids"].shape[1])
