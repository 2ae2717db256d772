"""Every value of a record equals what an eager run's outputs give, computed independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor

from corevital.capture.chunk import MOST_STEPS
from corevital.record import Captured
from tests.capture.agreement import assert_record_equals_outputs, close
from tests.capture.observe import everything_equal, observe, observing
from tests.capture.recomputation import logit_columns, prompt_columns
from tests.models import LAYERS, VOCABULARY, GenerativeModel, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel
from tests.zoo.architectures import Architecture

REGISTRY_FAMILIES = ("llama", "gpt2", "qwen2", "qwen3", "phi3", "mixtral")
OUTPUTS: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_logits": True,
    "output_hidden_states": True,
    "output_attentions": True,
}


def with_eager(model: GenerativeModel, inputs: Any, **arguments: Any) -> Any:
    """The outputs of an eager run of the same weights, not instrumented."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return model.generate(**inputs, **OUTPUTS, **arguments)
    finally:
        model.set_attn_implementation(implementation)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("family", REGISTRY_FAMILIES)
def test_every_column_equals_the_recomputation(family: str, backend: str) -> None:
    model = tiny_model(family, attn_implementation=backend)
    inputs = {"input_ids": tiny_prompt()}
    arguments = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 40}
    _, (record,) = observe(model, **inputs, **arguments)
    assert record.steps == 40
    assert_record_equals_outputs(record, with_eager(model, inputs, **arguments))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_sliding_window_limits_the_visible_keys(backend: str) -> None:
    model = tiny_model("mistral", attn_implementation=backend)
    inputs = {"input_ids": tiny_prompt()}
    arguments = {"do_sample": False, "max_new_tokens": 20, "min_new_tokens": 20}
    _, (record,) = observe(model, **inputs, **arguments)
    window = model.config.sliding_window

    def inside_window(step: int, keys: int) -> slice:
        return slice(max(keys - window, 0), keys)

    outputs = with_eager(model, inputs, **arguments)
    assert_record_equals_outputs(record, outputs, visible=inside_window)


def test_soft_capped_scores_and_logits() -> None:
    model = tiny_model("gemma2", attn_implementation="eager")
    inputs = {"input_ids": tiny_prompt()}
    arguments = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12}
    _, (record,) = observe(model, **inputs, **arguments)
    outputs = with_eager(model, inputs, **arguments)
    for name, expected in logit_columns(outputs, 0, 12).items():
        close(getattr(record.logits, name), expected)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_the_real_model(smollm2: LoadedModel, smollm2_eager: LoadedModel, backend: str) -> None:
    observed = smollm2 if backend == "sdpa" else smollm2_eager
    inputs = smollm2.chat("Name three rivers in Europe.")
    arguments = {"do_sample": False, "max_new_tokens": 40, "min_new_tokens": 40}
    plain = observed.model.generate(**inputs, **arguments)
    result, (record,) = observe(observed.model, **inputs, **arguments)
    assert torch.equal(result, plain)
    outputs = smollm2_eager.model.generate(**inputs, **arguments, **OUTPUTS)
    assert_record_equals_outputs(record, outputs)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_padding_on_the_left_enters_no_statistic(
    smollm2: LoadedModel, smollm2_eager: LoadedModel, backend: str
) -> None:
    observed = smollm2 if backend == "sdpa" else smollm2_eager
    texts = ["The capital of France is", "One, two, three, four, five, six, seven, eight, nine,"]
    batch = smollm2.tokenizer(texts, return_tensors="pt", padding=True)
    arguments = {"do_sample": False, "max_new_tokens": 24, "min_new_tokens": 24}
    _, records = observe(observed.model, **batch, **arguments)
    outputs = smollm2_eager.model.generate(**batch, **arguments, **OUTPUTS)
    assert [record.prompt_tokens for record in records] == batch["attention_mask"].sum(-1).tolist()
    for row, record in enumerate(records):
        padding = int((batch["attention_mask"][row] == 0).sum())

        def without_padding(step: int, keys: int, padding: int = padding) -> slice:
            return slice(padding, keys)

        assert_record_equals_outputs(record, outputs, row, without_padding)


def test_a_padded_prompt_gives_the_prompt_columns_of_the_same_prompt_alone(
    smollm2: LoadedModel,
) -> None:
    texts = ["The capital of France is", "One, two, three, four, five, six, seven, eight, nine,"]
    batch = smollm2.tokenizer(texts, return_tensors="pt", padding=True)
    _, records = observe(smollm2.model, **batch, do_sample=False, max_new_tokens=2)
    for text, record in zip(texts, records, strict=True):
        alone = smollm2.tokenizer(text, return_tensors="pt")
        _, (expected,) = observe(smollm2.model, **alone, do_sample=False, max_new_tokens=2)
        for name in ("surprisal", "layer_transformation", "basin"):
            close(getattr(record.prompt, name), getattr(expected.prompt, name))
        assert record.prompt.sparse is not None
        assert expected.prompt.sparse is not None
        assert record.prompt.sparse.total == pytest.approx(expected.prompt.sparse.total, abs=5)


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("tokens", [2, 9, 70])
def test_prompt_columns_equal_the_recomputation(backend: str, tokens: int) -> None:
    model = tiny_model("llama", attn_implementation=backend)
    prompt = tiny_prompt(tokens=tokens)
    _, (record,) = observe(model, input_ids=prompt, do_sample=False, max_new_tokens=2)
    model.set_attn_implementation("eager")
    expected = prompt_columns(model, prompt)
    close(record.prompt.surprisal, expected["surprisal"])
    close(record.prompt.layer_transformation, expected["layer_transformation"])
    basin = expected["basin"] if tokens > 2 else np.ones_like(expected["basin"])
    close(record.prompt.basin, basin)
    sparse = record.prompt.sparse
    assert sparse is not None
    assert sparse.total == int((expected["weights"] > 0.01).sum())
    listed = expected["weights"][sparse.layer, sparse.head, sparse.query, sparse.key]
    close(sparse.weight, listed)
    newest = expected["weights"][:, :, int(sparse.query.min()) :]
    assert sparse.kept == int((newest > 0.01).sum())


def test_the_prompt_of_the_real_model(smollm2: LoadedModel, smollm2_eager: LoadedModel) -> None:
    inputs = smollm2.chat("Why is the sky blue?")
    _, (record,) = observe(smollm2.model, **inputs, do_sample=False, max_new_tokens=2)
    expected = prompt_columns(smollm2_eager.model, inputs["input_ids"])
    for name in ("surprisal", "layer_transformation", "basin"):
        close(getattr(record.prompt, name), expected[name])


def test_a_prompt_longer_than_the_limit_is_left_alone() -> None:
    model = tiny_model("llama")
    _, (record,) = observe(
        model, {"prompt_max_tokens": 8}, input_ids=tiny_prompt(tokens=9), max_new_tokens=2
    )
    assert not record.capture.prompt.available
    assert record.capture.prompt.reason == "prompt of 9 tokens; the limit is 8"
    assert record.prompt.surprisal is None


def test_surprisal_is_not_guessed_when_the_logits_are_more_than_the_heads_product() -> None:
    model = tiny_model("gemma2", final_logit_softcapping=0.5)
    _, (record,) = observe(model, input_ids=tiny_prompt(), max_new_tokens=2)
    assert record.prompt.surprisal is None
    assert record.prompt.layer_transformation is not None


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "mistral", "gemma2", "falcon", "bloom", "gptj", "mamba"]
)
@pytest.mark.parametrize("sampling", [False, True])
def test_everything_that_is_returned_stays_the_same(family: str, sampling: bool) -> None:
    model = tiny_model(family)
    arguments: dict[str, Any] = {
        "input_ids": tiny_prompt(batch=3),
        "do_sample": sampling,
        "max_new_tokens": 16,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_hidden_states": True,
    }
    torch.manual_seed(7)
    plain = model.generate(**arguments)
    torch.manual_seed(7)
    result, records = observe(model, **arguments)
    assert everything_equal(result, plain)
    assert len(records) == 3


@pytest.mark.parametrize(
    "architecture",
    [
        Architecture("openai-gpt", "OpenAIGPTLMHeadModel"),
        Architecture("xlnet", "XLNetLMHeadModel"),
    ],
    ids=str,
)
def test_attention_out_of_sight_is_unavailable_and_says_so(architecture: Architecture) -> None:
    _, (record,) = observe(architecture.build(), **architecture.inputs(1), max_new_tokens=4)
    assert record.attention is None
    assert record.capture.attention.reason == ("no attention goes through the attention interface")
    assert record.logits is not None
    assert record.hidden is not None


def test_a_last_layer_without_attention_is_all_that_a_summary_looks_at() -> None:
    architecture = Architecture("nemotron_h", "NemotronHForCausalLM")
    model, inputs = architecture.build_or_skip(), architecture.inputs(1)
    _, (full,) = observe(model, **inputs, max_new_tokens=4)
    _, (summary,) = observe(model, {"capture": "summary"}, **inputs, max_new_tokens=4)
    assert full.attention is not None
    assert full.hidden is not None
    assert full.hidden.layers[-1] not in full.attention.layers
    reason = "no attention of the last layer goes through the attention interface"
    assert summary.capture.attention == Captured(available=False, reason=reason)


def test_a_sequence_that_ends_before_the_others_has_no_steps_of_padding() -> None:
    model = tiny_model("llama")
    prompts = tiny_prompt(batch=8)
    arguments = {"do_sample": True, "max_new_tokens": 60, "temperature": 2.0}
    torch.manual_seed(3)
    result, records = observe(model, input_ids=prompts, **arguments)
    ends = [row.index(1) + 1 if 1 in row else len(row) for row in result[:, 12:].tolist()]
    assert len(set(ends)) > 1, "the seed must give sequences of different lengths"
    assert [record.steps for record in records] == ends
    expected = ["stop" if 1 in row else "length" for row in result[:, 12:].tolist()]
    assert [record.finish_reason for record in records] == expected


def test_a_record_that_is_kept_keeps_no_other_sequences_numbers() -> None:
    length = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
    _, (record, *_) = observe(tiny_model("llama"), input_ids=tiny_prompt(batch=8), **length)
    assert record.logits is not None
    assert record.hidden is not None
    assert record.attention is not None
    one = {"entropy": 4 * 9, "mean": 6 * 9 * LAYERS, "entropy_mean": 8 * 9 * LAYERS}
    for part, (name, numbers) in zip(
        (record.logits, record.hidden, record.attention), one.items(), strict=True
    ):
        memory = getattr(part, name)
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        assert memory.nbytes == 4 * numbers


@pytest.mark.parametrize("beams", [1, 3])
def test_padding_beyond_the_vocabulary_takes_nothing_away(beams: int) -> None:
    """As of a tokenizer that was given a token of its own for it, and a model that was not."""
    model, prompts = tiny_model("llama"), tiny_prompt(batch=2)
    length = prompts.shape[1]
    free = model.generate(prompts, max_new_tokens=12, eos_token_id=None, num_beams=beams)
    first, second = free[:, length:].tolist()
    step = next(
        step
        for step in range(2, 11)
        if first.index(first[step]) == step
        and second.index(second[step + 1]) == step + 1
        and not {first[step], second[step + 1]} & {*first[:step], *second[: step + 1]}
    )
    arguments = {"max_new_tokens": step + 2, "eos_token_id": [first[step], second[step + 1]]}
    arguments |= {"num_beams": beams, "pad_token_id": VOCABULARY}
    result, records = observe(model, inputs=prompts, **arguments)
    assert VOCABULARY in result
    for row, record in enumerate(records):
        assert record.steps == int((result[row, length:] < VOCABULARY).sum())
        assert record.capture.logits.available
        assert record.logits is not None
        assert np.isfinite(record.logits.surprisal).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"num_return_sequences": 2, "do_sample": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"guidance_scale": 1.5},
        {"guidance_scale": 1.5, "negative_prompt_ids": tiny_prompt(tokens=4, seed=3)},
        {"stopping_criteria": ()},
    ],
    ids=[
        "no cache",
        "static cache",
        "several sequences",
        "logits processors",
        "guidance",
        "negative prompt",
        "criteria in a tuple",
    ],
)
def test_other_ways_of_greedy_and_sampling(arguments: dict[str, Any]) -> None:
    model = tiny_model("llama")
    arguments = {"input_ids": tiny_prompt(), "max_new_tokens": 20, "min_new_tokens": 20} | arguments
    torch.manual_seed(5)
    plain = model.generate(**arguments)
    torch.manual_seed(5)
    result, records = observe(model, **arguments)
    assert torch.equal(result, plain)
    eager = tiny_model("llama", attn_implementation="eager")
    for row, record in enumerate(records):
        # Teacher forcing: one forward pass over the whole sequence gives every step's values.
        with torch.no_grad():
            outputs = eager(result[row : row + 1], output_attentions=True)
        log2 = torch.log_softmax(outputs.logits[0].double(), -1) / np.log(2)
        entropy = -(log2.exp2() * log2).sum(-1)
        assert record.logits is not None
        close(record.logits.entropy, entropy[11:-1].numpy())
        rows = torch.stack([layer[0, :, 11:-1] for layer in outputs.attentions]).double()
        expected = -(rows * rows.clamp(min=1e-30).log2()).sum(-1).mean(1)
        assert record.attention is not None
        close(record.attention.entropy_mean, expected.T.numpy())


def test_embeddings_instead_of_ids() -> None:
    model = tiny_model("llama")
    embeddings = model.get_input_embeddings()(tiny_prompt())
    plain = model.generate(inputs_embeds=embeddings, max_new_tokens=6, do_sample=False)
    result, (record,) = observe(model, inputs_embeds=embeddings, max_new_tokens=6, do_sample=False)
    assert torch.equal(result, plain)
    assert record.token_ids.tolist() == result[0].tolist()
    assert record.capture.prompt.reason == "the prompt was given as embeddings"


class Interruption(Exception):
    """What a user's own code raises in the middle of a generation."""


class InterruptsAt(LogitsProcessor):
    """Raises once the prompt and the tokens are so many."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] == self._length:
            raise Interruption
        return scores


@pytest.mark.parametrize("tokens", [3, MOST_STEPS, MOST_STEPS + 8])
def test_what_was_generated_before_an_exception_is_complete(tokens: int) -> None:
    model = tiny_model("llama")
    arguments = {"do_sample": False, "max_new_tokens": 60, "min_new_tokens": 60}
    with observing() as records, pytest.raises(Interruption):
        model.generate(tiny_prompt(), logits_processor=[InterruptsAt(12 + tokens)], **arguments)
    (record,) = records
    assert record.steps == tokens
    expected = with_eager(model, {"input_ids": tiny_prompt()}, **arguments)
    assert_record_equals_outputs(record, expected)


# Of the masks of 4.57 the compiler itself makes an instance of what should have none.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiled_forward_pass_gives_its_logits_and_says_what_is_missing(in_place: bool) -> None:
    model = tiny_model("llama")
    arguments = {"do_sample": False, "max_new_tokens": 4}
    _, (expected,) = observe(model, input_ids=tiny_prompt(), **arguments)
    if in_place:
        model.compile(backend="eager", fullgraph=True)
    else:
        model.forward = torch.compile(model.forward, backend="eager", fullgraph=True)
    plain = model.generate(tiny_prompt(), **arguments)
    result, (record,) = observe(model, inputs=tiny_prompt(), **arguments)
    assert torch.equal(result, plain)
    assert record.logits is not None
    assert expected.logits is not None
    close(record.logits.surprisal, expected.logits.surprisal)
    assert record.capture.failures == 0
    for captured in (record.capture.hidden, record.capture.attention, record.capture.prompt):
        assert captured.reason == "the forward pass is compiled"
