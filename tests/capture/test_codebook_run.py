"""Of a model's own generate, every codebook's record equals what the forced model gives."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import StoppingCriteria

from corevital import GenerationRecord
from tests.capture.forced_codebooks import ForcedCodebook, LoopRows, forced_outputs
from tests.capture.observe import everything_equal, observe
from tests.capture.test_encoder_decoder import assert_columns
from tests.models import GenerativeModel
from tests.zoo.architectures import PROMPT_TOKENS, Architecture, in_this_release

MUSICGEN = Architecture("musicgen", "MusicgenForConditionalGeneration")
MELODY = Architecture("musicgen_melody", "MusicgenMelodyForConditionalGeneration")
DIA = Architecture("dia", "DiaForConditionalGeneration")
CODEBOOKS = {MUSICGEN: 4, MELODY: 4, DIA: 9}
STEPS = 12
PADDING = 2


def generate(
    architecture: Architecture, capture: dict[str, Any] | None = None, /, **settings: Any
) -> tuple[GenerativeModel, dict[str, Tensor], Tensor, list[GenerationRecord]]:
    """A model, what it was given, the rows of its loop, and the records."""
    model = architecture.build_or_skip()
    # No row is over before the others.
    model.generation_config.eos_token_id = None
    inputs = architecture.inputs(batch=2)
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    inputs["input_ids"][0, -PADDING:] = 0
    inputs["attention_mask"][0, -PADDING:] = 0
    # Guided, the tiny Dia has no probability that is a number left to sample from.
    sampled = architecture is not DIA or settings.get("guidance_scale") is None
    asked = {"max_new_tokens": STEPS, "do_sample": sampled} | settings
    torch.manual_seed(0)
    plain = model.generate(**inputs, **asked)
    after = torch.get_rng_state()
    rows = LoopRows()
    torch.manual_seed(0)
    result, records = observe(model, capture, **inputs, **asked, stopping_criteria=[rows])
    assert everything_equal(result, plain)
    assert torch.equal(torch.get_rng_state(), after)
    assert rows.newest is not None
    return model, inputs, rows.newest, records


def given(architecture: Architecture, model: Any, rows: Tensor, answers: int) -> Tensor:
    """What the decoder was given of these rows; of MusicGen, the codebooks are delayed."""
    if architecture is DIA:
        by_codebook = rows[:, :-1].unflatten(0, (-1, CODEBOOKS[DIA]))
        return by_codebook.transpose(1, 2).contiguous()
    _, pattern = model.decoder.build_delay_pattern_mask(
        rows[::answers, :-STEPS],
        model.generation_config.decoder_start_token_id,
        rows.shape[1],
    )
    pattern = pattern.repeat_interleave(answers, 0)
    delayed: Tensor = model.decoder.apply_delay_pattern_mask(rows[:, :-1], pattern)
    return delayed


def forced(
    architecture: Architecture,
    model: GenerativeModel,
    inputs: dict[str, Tensor],
    rows: Tensor,
    answers: int = 1,
) -> list[ForcedCodebook]:
    """Every row through an eager model of the same weights."""
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    repeated = {name: value.repeat_interleave(answers, 0) for name, value in inputs.items()}
    outputs = forced_outputs(eager, repeated, given(architecture, eager, rows, answers))
    codebooks = CODEBOOKS[architecture]
    return [
        ForcedCodebook(outputs, row, rows[row, -STEPS:], codebooks=codebooks)
        for row in range(len(rows))
    ]


@pytest.mark.parametrize("guidance", [None, 2.0], ids=["alone", "guided"])
@pytest.mark.parametrize("architecture", [MUSICGEN, DIA], ids=str)
def test_every_codebook_equals_the_forced_model(
    architecture: Architecture, guidance: float | None
) -> None:
    model, inputs, rows, records = generate(architecture, guidance_scale=guidance)
    assert len(records) == 2 * CODEBOOKS[architecture]
    expected = forced(architecture, model, inputs, rows)
    for row, (record, of_row) in enumerate(zip(records, expected, strict=True)):
        shorter = row < CODEBOOKS[architecture]
        assert record.token_ids.tolist() == rows[row, -STEPS:].tolist()
        assert record.prompt_tokens == (PROMPT_TOKENS - PADDING if shorter else PROMPT_TOKENS)
        assert_decoder(record, of_row)
        assert_columns(record.cross_attention, {} if shorter else of_row.cross_attention())
        assert record.encoder is not None
        assert_columns(record.encoder.hidden, {} if shorter else of_row.encoder_hidden())


def test_answers_to_one_prompt_share_it() -> None:
    model, inputs, rows, records = generate(MUSICGEN, num_return_sequences=3)
    assert len(records) == 2 * 3 * CODEBOOKS[MUSICGEN]
    expected = forced(MUSICGEN, model, inputs, rows, answers=3)
    for row, (record, of_row) in enumerate(zip(records, expected, strict=True)):
        shorter = row < 3 * CODEBOOKS[MUSICGEN]
        assert record.prompt_tokens == (PROMPT_TOKENS - PADDING if shorter else PROMPT_TOKENS)
        assert_decoder(record, of_row)


# In 4.57 a cache changes what the model says, so that nothing can be forced at once.
@in_this_release
def test_a_decoder_that_begins_with_its_condition() -> None:
    model, inputs, rows, records = generate(MELODY, guidance_scale=2.0)
    expected = forced(MELODY, model, inputs, rows)
    for record, of_row in zip(records, expected, strict=True):
        assert_columns(record.logits, of_row.logits())
        assert_columns(record.hidden, of_row.hidden())
        assert record.capture.attention.reason == ("self- and cross-attention cannot be told apart")


@pytest.mark.parametrize("mode", ["summary", "on_risk", "off"])
def test_other_capture_modes(mode: str) -> None:
    _, _, rows, records = generate(DIA, {"capture": mode}, guidance_scale=2.0)
    assert {record.capture.failures for record in records} == {0}
    if mode == "off":
        assert [record.capture.logits.reason for record in records] == ["capture is off"] * 18
        return
    for row, record in enumerate(records):
        assert record.token_ids.tolist() == rows[row, -STEPS:].tolist()
        assert record.logits is not None
        assert record.hidden is not None
        assert record.hidden.l2_norm.shape[0] == STEPS


# The causal model's generate fails by itself in 4.57.
@in_this_release
def test_a_prompt_of_codebooks() -> None:
    model = Architecture("musicgen", "MusicgenForCausalLM").build_or_skip()
    codes = torch.randint(3, 90, (2, 5))
    result, records = observe(model, inputs=codes, max_new_tokens=STEPS, do_sample=False)
    assert result.shape[:2] == (2, 1)
    assert [record.prompt_tokens for record in records] == [5, 5]
    assert {record.capture.prompt.reason for record in records} == {
        "the prompt is made of codebooks"
    }
    for record, row in zip(records, result[:, 0], strict=True):
        assert record.token_ids.tolist() == row[-STEPS:].tolist()


def assert_decoder(record: GenerationRecord, expected: ForcedCodebook) -> None:
    assert record.capture.failures == 0
    assert_columns(record.logits, expected.logits())
    assert_columns(record.hidden, expected.hidden())
    assert_columns(record.attention, expected.attention())


class Ends(StoppingCriteria):
    """Ends the first row after some tokens."""

    def __init__(self, after: int) -> None:
        self._left = after

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self._left -= 1
        ended = torch.zeros(len(input_ids), dtype=torch.bool)
        ended[0] = self._left <= 0
        return ended


@in_this_release
def test_a_row_ends_before_what_it_is_padded_with() -> None:
    model = Architecture("musicgen", "MusicgenForCausalLM").build_or_skip()
    # Of MusicGen, the code for padding is the first beyond the logits.
    model.generation_config.pad_token_id = model.config.vocab_size
    _, records = observe(
        model,
        inputs=torch.full((2, 1), 2),
        max_new_tokens=STEPS,
        do_sample=False,
        stopping_criteria=[Ends(after=4)],
    )
    assert [record.steps for record in records] == [4, STEPS]
    assert {record.capture.failures for record in records} == {0}
