"""Beam search: every returned sequence has the record of the rows that it went along."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, StoppingCriteria

from corevital import GenerationRecord
from corevital.record import CaptureMode
from tests.capture.observe import everything_equal, observe, observing
from tests.capture.teacher_forcing import assert_records_equal_forced
from tests.models import GenerativeModel, padded_prompts, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel

PROMPT = 12
ENDS = [1, 5, 9, 40, 77, 78]
PADDING = [0, 2, 4]


def beams(
    model: GenerativeModel, settings: dict[str, Any] | None = None, /, **arguments: Any
) -> tuple[torch.Tensor, list[GenerationRecord]]:
    """Sequences and records; with CoreVital and without, the sequences are the same."""
    asked = {"max_new_tokens": 20} | arguments
    torch.manual_seed(5)
    plain = model.generate(**asked)
    random_state = torch.get_rng_state()
    torch.manual_seed(5)
    result, records = observe(model, settings, **asked)
    assert everything_equal(result, plain)
    assert torch.equal(torch.get_rng_state(), random_state)
    return getattr(result, "sequences", result), records


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_return_sequences": 2},
        {"num_return_sequences": 3, "do_sample": True, "temperature": 1.5},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"guidance_scale": 1.5},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=[
        "several sequences",
        "beam sampling",
        "no cache",
        "static cache",
        "chunked prefill",
        "guidance",
        "logits processors",
    ],
)
def test_every_column_is_that_of_the_returned_sequence(arguments: dict[str, Any]) -> None:
    model = tiny_model("llama")
    sequences, records = beams(model, input_ids=tiny_prompt(batch=2), num_beams=3, **arguments)
    assert_records_equal_forced(records, model, sequences, PROMPT)


@pytest.mark.parametrize("family", ["gpt2", "qwen3", "mixtral"])
def test_other_families(family: str) -> None:
    model = tiny_model(family, attn_implementation="eager")
    sequences, records = beams(model, input_ids=tiny_prompt(batch=2), num_beams=3)
    assert_records_equal_forced(records, model, sequences, PROMPT)


@pytest.mark.parametrize("cache", [None, "static"])
def test_a_sliding_window(cache: str | None) -> None:
    model = tiny_model("mistral")
    window = model.config.sliding_window
    sequences, records = beams(
        model, input_ids=tiny_prompt(batch=2), num_beams=3, cache_implementation=cache
    )
    assert_records_equal_forced(
        records,
        model,
        sequences,
        PROMPT,
        visible=lambda _step, keys: slice(max(keys - window, 0), keys),
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"early_stopping": True},
        {"length_penalty": -1.0, "num_return_sequences": 4},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": True, "early_stopping": True, "pad_token_id": 50},
    ],
    ids=["early stopping", "length penalty", "beam sampling", "padding of its own"],
)
def test_sequences_that_end_at_different_lengths(arguments: dict[str, Any]) -> None:
    model = tiny_model("llama")
    answers = arguments.get("num_return_sequences", 1)
    sequences, records = beams(
        model,
        **padded_prompts(PADDING),
        num_beams=4,
        eos_token_id=ENDS,
        max_new_tokens=40,
        **arguments,
    )
    padding = [each for each in PADDING for _ in range(answers)]
    assert_records_equal_forced(records, model, sequences, PROMPT, padding)

    generated = sequences[:, PROMPT:].tolist()
    ends = [next((at + 1 for at, i in enumerate(row) if i in ENDS), len(row)) for row in generated]
    assert [record.steps for record in records] == ends
    assert len(set(ends)) > 1, "the seed must give sequences of different lengths"
    assert [record.finish_reason for record in records] == [
        "stop" if row[end - 1] in ENDS else "length"
        for row, end in zip(generated, ends, strict=True)
    ]


class EndsWith(StoppingCriteria):
    """A user's own: a sequence ends with one of some tokens, which are no end tokens."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return torch.isin(input_ids[:, -1], torch.tensor(ENDS))  # type: ignore[return-value]


def test_what_fills_up_a_shorter_sequence_is_no_step() -> None:
    model = tiny_model("llama")
    sequences, records = beams(
        model,
        input_ids=tiny_prompt(batch=3, seed=2),
        num_beams=3,
        num_return_sequences=3,
        max_new_tokens=40,
        do_sample=True,
        eos_token_id=127,
        stopping_criteria=[EndsWith()],
    )
    lengths = [record.steps for record in records]
    assert len(set(lengths)) > 1, "the seed must give sequences of different lengths"
    for record, generated in zip(records, sequences[:, PROMPT:].tolist(), strict=True):
        ends = [at + 1 for at, token in enumerate(generated) if token in ENDS]
        assert record.steps == (ends[0] if ends else 40)
    assert_records_equal_forced(records, model, sequences, PROMPT)


def test_the_prompt_is_that_of_each_sequence() -> None:
    model = tiny_model("llama")
    _, records = beams(model, **padded_prompts(PADDING), num_beams=3, num_return_sequences=2)
    _, expected = observe(model, **padded_prompts(PADDING), max_new_tokens=2)
    for place, record in enumerate(records):
        alone = expected[place // 2]
        assert record.prompt_hash == alone.prompt_hash
        assert record.prompt_tokens == alone.prompt_tokens == PROMPT - PADDING[place // 2]
        assert record.prompt.surprisal == pytest.approx(alone.prompt.surprisal, abs=1e-4)
        assert record.prompt.basin == pytest.approx(alone.prompt.basin, abs=1e-4)


def test_every_output_stays_as_it_was() -> None:
    model = tiny_model("llama", attn_implementation="eager")
    _, records = beams(
        model,
        input_ids=tiny_prompt(batch=2),
        num_beams=3,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_attentions=True,
        output_hidden_states=True,
    )
    assert len(records) == 2


@pytest.mark.parametrize("mode", ["summary", "on_risk", "off"])
def test_the_other_capture_modes(mode: str) -> None:
    model = tiny_model("llama")
    sequences, records = beams(
        model, {"capture": mode}, input_ids=tiny_prompt(batch=2), num_beams=3
    )
    _, full = beams(model, input_ids=tiny_prompt(batch=2), num_beams=3)
    for record, other, generated in zip(records, full, sequences[:, PROMPT:], strict=True):
        assert record.capture.mode is CaptureMode(mode)
        assert record.token_ids.tolist() == generated[: record.steps].tolist()
        if mode == "off":
            assert record.capture.logits.reason == "capture is off"
        else:
            assert record.logits is not None
            assert other.logits is not None
            assert record.logits.surprisal == pytest.approx(other.logits.surprisal, abs=1e-4)


def test_times_are_those_of_the_steps() -> None:
    _, records = beams(tiny_model("llama"), input_ids=tiny_prompt(batch=2), num_beams=3)
    first, second = (record.step_time_ns.tolist() for record in records)
    assert first == second == sorted(set(first))
    assert records[0].start_time_ns < first[0] <= first[-1] <= records[0].end_time_ns


class Interruption(Exception):
    """What a user's own code raises in the middle."""


class Interrupts(LogitsProcessor):
    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] > PROMPT + 3:
            raise Interruption
        return scores


def test_a_search_that_is_interrupted_has_chosen_no_sequence() -> None:
    with observing() as records, pytest.raises(Interruption):
        tiny_model("llama").generate(
            tiny_prompt(), num_beams=3, max_new_tokens=20, logits_processor=[Interrupts()]
        )
    (record,) = records
    assert not record.observed
    assert record.capture.logits.reason == "beam search ended before it chose its sequences"


def test_a_sequence_that_no_beam_is_known_to_have_gone_along_is_not_guessed() -> None:
    model = tiny_model("llama")

    class Corrected(type(model)):  # type: ignore[misc]
        """A model with a beam search of its own, that changes a token in the end."""

        def _beam_search(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            sequences: torch.Tensor = super()._beam_search(*args, **kwargs)
            sequences[1, PROMPT + 3] = 125
            return sequences

    model.__class__ = Corrected
    sequences, (known, unknown) = beams(model, input_ids=tiny_prompt(batch=2), num_beams=3)
    assert_records_equal_forced([known], model, sequences[:1], PROMPT)
    assert not unknown.observed
    assert unknown.token_ids.tolist() == sequences[1, PROMPT:].tolist()
    assert unknown.capture.logits.reason == (
        "the returned sequence is none that the beams went along"
    )


def test_the_real_model(smollm2: LoadedModel) -> None:
    texts = ["The capital of France is", "One, two, three, four, five, six, seven, eight, nine,"]
    batch = smollm2.tokenizer(texts, return_tensors="pt", padding=True)
    sequences, records = beams(
        smollm2.model, **batch, num_beams=3, num_return_sequences=2, max_new_tokens=8
    )
    padding = [int(row) for row in (batch["attention_mask"] == 0).sum(-1) for _ in range(2)]
    prompt = batch["input_ids"].shape[1]
    assert_records_equal_forced(records, smollm2.model, sequences, prompt, padding)
