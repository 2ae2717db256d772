"""Assisted, chunked and custom decoding of encoder-decoders: every value is the forced model's."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from corevital import GenerationRecord
from tests.capture.contrastive_search import encoder_decoder_search
from tests.capture.forced_encoder_decoder import Forced
from tests.capture.loops import library_loop
from tests.capture.observe import everything_equal, observe
from tests.capture.test_encoder_decoder import (
    BACKENDS,
    FAMILIES,
    TEXT,
    assert_equals,
    has_attention,
    model_of,
    prompts,
)
from tests.models import GenerativeModel, tiny_model
from tests.zoo.architectures import in_this_release

TOKENS = 24
BEGIN = [7, 9, 11, 8]
NOT_ONE_EACH = "the custom loop's tokens are not those of one forward pass each"


def generate(
    model: GenerativeModel, settings: dict[str, Any] | None = None, /, **arguments: Any
) -> tuple[Tensor, list[GenerationRecord]]:
    """Sequences and records; with CoreVital and without, the sequences are the same."""
    asked = {"max_new_tokens": TOKENS, "do_sample": False} | arguments
    # An assistant keeps what it learned of its success, so each call gets one of its own.
    torch.manual_seed(5)
    plain = model.generate(**copy.deepcopy(asked))
    random_state = torch.get_rng_state()
    torch.manual_seed(5)
    result, records = observe(model, settings, **copy.deepcopy(asked))
    assert everything_equal(result, plain)
    assert torch.equal(torch.get_rng_state(), random_state)
    return getattr(result, "sequences", result), records


def assert_forced(
    family: str, sequences: Tensor, records: list[GenerationRecord], prompt: int = 1
) -> None:
    """Every record is that of its sequence, which ends with the record's tokens."""
    for row, record in enumerate(records):
        assert record.token_ids.tolist() == sequences[row, -record.steps :].tolist()
        sequence = sequences[row]
        if family == "whisper":
            # It returns new tokens only.
            start = tiny_model(family).generation_config.decoder_start_token_id
            sequence = torch.cat((torch.tensor([start]), sequence[-record.steps :]))
        alone = {
            name: given[row : row + 1] for name, given in prompts(family, len(records)).items()
        }
        expected = Forced(model_of(family, "eager"), alone, sequence, prompt)
        assert record.decoder_prompt_tokens == prompt
        assert_equals(record, expected, attention=has_attention(family))


def accepted_together(record: GenerationRecord) -> list[int]:
    """How many tokens came of each forward pass: those have the same time."""
    return np.unique(record.step_time_ns, return_counts=True)[1].tolist()


def disagreeing(family: str) -> GenerativeModel:
    """An assistant that has almost the model's weights: most of its guesses are right."""
    assistant = tiny_model(family)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in assistant.parameters():
            weight.add_(torch.randn(weight.shape, generator=random), alpha=0.02)
    assistant.generation_config.assistant_confidence_threshold = 0.0
    return assistant


@pytest.mark.parametrize("sampling", [False, True], ids=["greedy", "sampling"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_assistant_that_is_sometimes_wrong(family: str, backend: str, *, sampling: bool) -> None:
    sequences, records = generate(
        model_of(family, backend),
        **prompts(family),
        assistant_model=disagreeing(family),
        do_sample=sampling,
    )
    if family == "bart":
        assert max(accepted_together(records[0])) > 1
    if family == "bart" and sampling:
        assert 1 in accepted_together(records[0])
    assert_forced(family, sequences, records)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", TEXT)
def test_prompt_lookup(family: str, backend: str) -> None:
    sequences, records = generate(
        model_of(family, backend), **prompts(family), prompt_lookup_num_tokens=3
    )
    assert_forced(family, sequences, records)


def test_an_assistant_and_a_decoder_that_is_given_its_first_tokens() -> None:
    start = tiny_model("bart").generation_config.decoder_start_token_id
    for begin in ([start, *BEGIN], BEGIN):
        sequences, records = generate(
            model_of("bart"),
            **prompts("bart"),
            assistant_model=disagreeing("bart"),
            decoder_input_ids=torch.tensor([begin]),
        )
        # The first token is put before those that do not begin with it.
        assert_forced("bart", sequences, records, prompt=1 + len(BEGIN))


@pytest.mark.parametrize("mode", ["summary", "on_risk", "off"])
def test_an_assistant_in_other_capture_modes(mode: str) -> None:
    arguments = {**prompts("bart"), "assistant_model": disagreeing("bart")}
    sequences, (record,) = generate(model_of("bart"), {"capture": mode}, **arguments)
    assert record.capture.failures == 0
    assert record.token_ids.tolist() == sequences[0, 1:].tolist()
    if mode == "off":
        assert record.capture.logits.reason == "capture is off"
        assert max(accepted_together(record)) > 1
        return
    _, (full,) = generate(model_of("bart"), **arguments)
    assert record.logits is not None
    assert full.logits is not None
    np.testing.assert_allclose(record.logits.surprisal, full.logits.surprisal, rtol=1e-4)


def test_an_assistant_and_an_intervention() -> None:
    model, arguments = model_of("bart"), {**prompts("bart"), "max_new_tokens": 200}
    plain = model.generate(**copy.deepcopy(arguments), do_sample=False)
    _, (record,) = observe(
        model,
        {"intervene": "repetition"},
        **arguments,
        do_sample=False,
        assistant_model=tiny_model("bart"),
    )
    _, (alone,) = observe(model, {"intervene": "repetition"}, **arguments, do_sample=False)
    assert alone.stopped_early is not None
    assert record.stopped_early is not None
    assert alone.steps <= record.steps < plain.shape[1] - 1


# 4.57 cannot split what decoders begin with.
@in_this_release
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", TEXT)
def test_chunked_prefill_of_what_the_decoder_begins_with(family: str, backend: str) -> None:
    model = model_of(family, backend)
    begin = [model.generation_config.decoder_start_token_id, *BEGIN]
    for size in (2, 4, 8):
        sequences, records = generate(
            model,
            **prompts(family, batch=2),
            decoder_input_ids=torch.tensor([begin, begin]),
            prefill_chunk_size=size,
        )
        assert_forced(family, sequences, records, prompt=len(begin))


@in_this_release
def test_chunked_prefill_of_one_token_and_of_beams() -> None:
    sequences, records = generate(model_of("bart"), **prompts("bart"), prefill_chunk_size=4)
    assert_forced("bart", sequences, records)
    sequences, records = generate(
        model_of("bart"), **prompts("bart"), prefill_chunk_size=4, num_beams=3
    )
    assert_forced("bart", sequences, records)


def uncached(model: Any, input_ids: Tensor, encoder_outputs: Any, **_: Any) -> Tensor:
    """Greedy, without a cache, and without a look at the stopping criteria."""
    for _step in range(TOKENS):
        outputs = model(encoder_outputs=encoder_outputs, decoder_input_ids=input_ids)
        input_ids = torch.cat((input_ids, outputs.logits[:, -1:].argmax(-1)), dim=-1)
    return input_ids


def positional(model: Any, input_ids: Tensor, encoder_outputs: Any, **_: Any) -> Tensor:
    """The decoder's tokens have no name that is known."""
    for _step in range(3):
        logits = model(None, None, input_ids, encoder_outputs=encoder_outputs).logits
        input_ids = torch.cat((input_ids, logits[:, -1:].argmax(-1)), dim=-1)
    return input_ids


def of_other_tokens(model: Any, input_ids: Tensor, encoder_outputs: Any, **_: Any) -> Tensor:
    """What the decoder is given is not what is returned."""
    for step in range(3):
        model(encoder_outputs=encoder_outputs, decoder_input_ids=input_ids)
        input_ids = torch.cat((input_ids, torch.full_like(input_ids[:, :1], 5 + step)), dim=-1)
    return input_ids.flip(-1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", TEXT)
def test_a_custom_loop_that_tries_several_tokens_at_once(family: str, backend: str) -> None:
    sequences, records = generate(
        model_of(family, backend),
        **prompts(family, batch=2),
        custom_generate=encoder_decoder_search,
    )
    assert len(records) == 2
    assert_forced(family, sequences, records)


def looks_again(model: Any, input_ids: Tensor, encoder_outputs: Any, **_: Any) -> Tensor:
    """Contrastive decoding: against the view of the newest token alone."""
    for _step in range(4):
        whole = model(encoder_outputs=encoder_outputs, decoder_input_ids=input_ids).logits
        newest = model(encoder_outputs=encoder_outputs, decoder_input_ids=input_ids[:, -1:]).logits
        chosen = (whole[:, -1:] - 0.5 * newest).argmax(-1)
        input_ids = torch.cat((input_ids, chosen), dim=-1)
    return input_ids


@pytest.mark.parametrize("loop", [library_loop, uncached])
@pytest.mark.parametrize("family", TEXT)
def test_a_custom_loop_with_one_forward_pass_for_each_token(family: str, loop: Any) -> None:
    sequences, records = generate(
        model_of(family), **prompts(family, batch=2), custom_generate=loop
    )
    assert len(records) == 2
    assert_forced(family, sequences, records)


@pytest.mark.parametrize("loop", [positional, of_other_tokens, looks_again])
def test_a_custom_loop_whose_tokens_are_not_seen_says_so(loop: Any) -> None:
    _, (record,) = generate(model_of("bart"), **prompts("bart"), custom_generate=loop)
    for signal in ("logits", "hidden", "attention", "cross_attention", "encoder_hidden"):
        assert getattr(record.capture, signal).reason == NOT_ONE_EACH
    assert record.capture.failures == 0
    assert not record.steps
