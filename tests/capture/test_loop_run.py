"""Custom decoding loops: observed where their tokens are those of their forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from corevital import GenerationRecord
from corevital.capture.chunk import MOST_STEPS
from tests.capture.contrastive_search import cached_search, uncached_search
from tests.capture.loops import contrasting, library_loop, of_everything, of_the_newest
from tests.capture.observe import observe, observing
from tests.capture.teacher_forcing import assert_records_equal_forced, forced_surprisal, own_length
from tests.models import tiny_model, tiny_prompt

PROMPT = 12
TOKENS = 40
END = 1
NOT_ONE_EACH = "the custom loop's tokens are not those of one forward pass each"


def with_loop(loop: Callable[..., Any], **arguments: Any) -> tuple[Any, list[GenerationRecord]]:
    """What a loop returned and its records; with CoreVital and without it returns the same."""
    model = tiny_model("llama")
    asked = {"max_new_tokens": TOKENS, "custom_generate": loop} | arguments
    torch.manual_seed(5)
    plain = model.generate(tiny_prompt(batch=2), **asked)
    torch.manual_seed(5)
    result, records = observe(model, inputs=tiny_prompt(batch=2), **asked)
    assert type(result) is type(plain)
    if isinstance(result, torch.Tensor):
        assert torch.equal(result, plain)
    return result, records


def uncached(model: Any, input_ids: torch.Tensor, steps: int = TOKENS, **_: Any) -> torch.Tensor:
    """Greedy, without a cache, and without a look at the stopping criteria."""
    for _step in range(steps):
        newest = model(input_ids).logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, newest), dim=-1)
    return input_ids


def cached(model: Any, input_ids: torch.Tensor, stopping_criteria: Any, **_: Any) -> torch.Tensor:
    """Sampling that writes into the logits and into the tensor that it gives to the model."""
    cache = DynamicCache(config=model.config)
    given = input_ids
    while True:
        logits = model(given, past_key_values=cache, use_cache=True).logits[:, -1]
        logits /= 2
        chosen = torch.multinomial(logits.softmax(-1), 1)
        if given.shape == chosen.shape:
            given.copy_(chosen)
        else:
            given = chosen
        input_ids = torch.cat((input_ids, chosen), dim=-1)
        if stopping_criteria(input_ids, None).all():
            return input_ids


def inferring(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Greedy, with the forward passes alone in inference mode."""
    cache, given = DynamicCache(config=model.config), input_ids
    for _step in range(TOKENS):
        with torch.inference_mode():
            logits = model(given, past_key_values=cache, use_cache=True).logits
        given = logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, given), dim=-1)
    return input_ids


@pytest.mark.parametrize("loop", [uncached, cached, inferring, library_loop])
def test_a_loop_with_one_forward_pass_for_each_token(loop: Callable[..., Any]) -> None:
    sequences, records = with_loop(loop)
    assert [record.steps for record in records] == [TOKENS, TOKENS]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)
    for record in records:
        times = record.step_time_ns.tolist()
        assert times == sorted(times)
        assert record.start_time_ns < times[0] <= times[-1] <= record.end_time_ns


@pytest.mark.parametrize("steps", [1, MOST_STEPS - 1, MOST_STEPS, MOST_STEPS + 1])
@pytest.mark.parametrize("search", [False, True], ids=["one token", "tokens tried"])
def test_a_loop_of_as_many_steps_as_are_reduced_together(steps: int, *, search: bool) -> None:
    def loop(model: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        if search:
            return uncached_search(model, input_ids, **options)
        return uncached(model, input_ids, steps)

    sequences, records = with_loop(loop, max_new_tokens=steps)
    assert [record.capture.failures for record in records] == [0, 0]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


def test_a_cache_that_lets_go_of_keys() -> None:
    """Fewer positions through the same cache are those of the next token."""

    def evicting(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        cache: Any = DynamicCache(config=model.config)
        given = input_ids
        for _step in range(TOKENS):
            given = model(given, past_key_values=cache).logits[:, -1:].argmax(-1)
            input_ids = torch.cat((input_ids, given), dim=-1)
            if cache.get_seq_length() > PROMPT:
                for layer in cache.layers:
                    layer.keys, layer.values = layer.keys[:, :, -6:], layer.values[:, :, -6:]
        return input_ids

    sequences, records = with_loop(evicting)
    for row, record in enumerate(records):
        assert record.steps == own_length(sequences[row, PROMPT:].tolist(), END, TOKENS)
        assert record.capture.attention.available


def test_a_forward_pass_too_many_in_the_end() -> None:
    def one_more(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        for _step in range(5):
            newest = model(input_ids).logits[:, -1:].argmax(-1)
            input_ids = torch.cat((input_ids, newest), dim=-1)
        model(input_ids)
        return input_ids

    sequences, records = with_loop(one_more)
    assert [record.steps for record in records] == [5, 5]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


def looking_twice_at_one_token(steps: int) -> Callable[..., torch.Tensor]:
    """The shorter view comes first, and every token is the last of the prompt."""

    def loop(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        for _step in range(steps):
            of_the_newest(model, input_ids)
            of_everything(model, input_ids)
            input_ids = torch.cat((input_ids, input_ids[:, -1:]), dim=-1)
        return input_ids

    return loop


def two_caches(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Away from what the model would say without the prompt, which has a cache of its own."""
    given, alone = input_ids, input_ids[:, -2:]
    caches = DynamicCache(config=model.config), DynamicCache(config=model.config)
    for _step in range(TOKENS):
        whole = model(given, past_key_values=caches[0]).logits[:, -1].log_softmax(-1)
        other = model(alone, past_key_values=caches[1]).logits[:, -1].log_softmax(-1)
        given = alone = (whole - 0.5 * other).argmax(-1, keepdim=True)
        input_ids = torch.cat((input_ids, given), dim=-1)
    return input_ids


@pytest.mark.parametrize(
    "loop", [contrasting(of_everything, of_the_newest, steps=TOKENS), two_caches]
)
def test_another_look_at_fewer_positions_is_none_of_the_loop(loop: Callable[..., Any]) -> None:
    sequences, records = with_loop(loop)
    for row, record in enumerate(records):
        assert record.steps == own_length(sequences[row, PROMPT:].tolist(), END, TOKENS)
        assert record.step_time_ns.tolist() == sorted(record.step_time_ns.tolist())
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


@pytest.mark.parametrize("search", [cached_search, uncached_search])
def test_several_tokens_tried_as_rows_of_one_forward_pass(search: Callable[..., Any]) -> None:
    sequences, records = with_loop(search)
    assert [record.steps for record in records] == [TOKENS, TOKENS]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)
    for record in records:
        times = record.step_time_ns.tolist()
        assert times == sorted(times)
        assert record.start_time_ns < times[0] <= times[-1] <= record.end_time_ns


@pytest.mark.parametrize("family", ["gpt2", "mistral", "gpt_oss", "mixtral"])
@pytest.mark.parametrize("search", [cached_search, uncached_search])
def test_tokens_tried_by_other_attentions(family: str, search: Callable[..., Any]) -> None:
    model = tiny_model(family)
    arguments = {"inputs": tiny_prompt(batch=2), "max_new_tokens": 9, "custom_generate": search}
    _, records = observe(model, **arguments)
    sequences, eager = observe(tiny_model(family, attn_implementation="eager"), **arguments)
    for record, other in zip(records, eager, strict=True):
        assert record.token_ids.tolist() == other.token_ids.tolist()
        assert record.attention is not None
        assert other.attention is not None
        np.testing.assert_allclose(
            record.attention.entropy_mean, other.attention.entropy_mean, atol=1e-3
        )
    for record, sequence in zip(records, sequences, strict=True):
        assert record.logits is not None
        surprisal = forced_surprisal(model, sequence, PROMPT)
        np.testing.assert_allclose(record.logits.surprisal, surprisal, atol=1e-3)


def test_tokens_tried_of_padded_prompts() -> None:
    mask = torch.ones(2, PROMPT, dtype=torch.long)
    mask[1, :5] = 0
    sequences, records = with_loop(cached_search, attention_mask=mask, max_new_tokens=9)
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT, [0, 5])


@pytest.mark.parametrize("search", [cached_search, uncached_search])
def test_a_sequence_that_ends_before_the_others_while_tokens_are_tried(
    search: Callable[..., Any],
) -> None:
    sequences, _ = with_loop(search)
    shorter, longer = sequences[0, PROMPT:].tolist(), sequences[1, PROMPT:].tolist()
    end = next(token for token in shorter[5:20] if token not in longer)
    sequences, records = with_loop(search, eos_token_id=end)
    assert [record.steps for record in records] == [shorter.index(end) + 1, TOKENS]
    assert [record.finish_reason for record in records] == ["stop", "length"]
    assert sequences[0, PROMPT + records[0].steps :].unique().tolist() == [0]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


def test_a_sequence_that_is_padded_when_the_loop_is_over() -> None:
    sequences = uncached(tiny_model("llama"), tiny_prompt(batch=2))
    shorter, longer = sequences[0, PROMPT:].tolist(), sequences[1, PROMPT:].tolist()
    end = next(token for token in shorter[5:20] if token not in longer)
    steps = shorter.index(end) + 1

    def padding_last(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        sequences = uncached(model, input_ids)
        sequences[0, PROMPT + steps :] = 0
        return sequences

    sequences, records = with_loop(padding_last, eos_token_id=end)
    assert [record.steps for record in records] == [steps, TOKENS]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


def test_a_summary_of_tokens_tried() -> None:
    arguments = {
        "inputs": tiny_prompt(batch=2),
        "max_new_tokens": TOKENS,
        "custom_generate": cached_search,
    }
    _, records = observe(tiny_model("llama"), {"capture": "summary"}, **arguments)
    _, full = observe(tiny_model("llama"), **arguments)
    for record, other in zip(records, full, strict=True):
        assert record.hidden is not None
        assert other.hidden is not None
        np.testing.assert_allclose(record.hidden.l2_norm[:, 0], other.hidden.l2_norm[:, -1])
        assert record.attention is not None
        assert other.attention is not None
        np.testing.assert_allclose(
            record.attention.entropy_mean[:, 0], other.attention.entropy_mean[:, -1], rtol=1e-4
        )


def test_everything_from_where_a_token_tried_makes_it_risky() -> None:
    settings = {"capture": "on_risk", "high_entropy_bits": 0.001}
    arguments = {
        "inputs": tiny_prompt(batch=2),
        "max_new_tokens": TOKENS,
        "custom_generate": cached_search,
    }
    _, records = observe(tiny_model("llama"), settings, **arguments)
    _, full = observe(tiny_model("llama"), **arguments)
    for record, other in zip(records, full, strict=True):
        assert record.capture.failures == 0
        first = record.capture.full_from_step
        assert first is not None
        assert 0 < first < TOKENS
        assert record.hidden is not None
        assert other.hidden is not None
        np.testing.assert_allclose(record.hidden.l2_norm[first:], other.hidden.l2_norm[first:])


def test_a_last_token_of_those_tried_that_no_criterion_is_asked_about() -> None:
    def unasked(model: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        asked = iter(range(TOKENS))

        def criteria(input_ids: torch.Tensor, scores: Any) -> torch.Tensor:
            if next(asked) == 4:
                return torch.tensor([True])
            done: torch.Tensor = options["stopping_criteria"](input_ids, scores)
            return done

        return uncached_search(model, input_ids, criteria, options["generation_config"])

    sequences, records = with_loop(unasked)
    assert [record.steps for record in records] == [5, 5]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


def two_equal_passes(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Contrastive decoding against what is left of the text without its first tokens."""
    mask = torch.ones_like(input_ids)
    mask[:, :6] = 0

    def masked(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
        hidden = torch.nn.functional.pad(mask, (0, input_ids.shape[1] - PROMPT), value=1)
        logits: torch.Tensor = model(input_ids, attention_mask=hidden).logits[:, -1]
        return logits

    looped: torch.Tensor = contrasting(of_everything, masked, steps=4)(model, input_ids)
    return looped


def trying(model: Any, input_ids: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Logits ``[B, n, V]`` behind each of ``candidates`` ``[B, n]``, of one forward pass."""
    rows = input_ids.repeat_interleave(candidates.shape[1], 0)
    tried = of_everything(model, torch.cat((rows, candidates.reshape(-1, 1)), dim=-1))
    return tried.unflatten(0, candidates.shape)


Choice = tuple[torch.Tensor, torch.Tensor]
"""Tokens ``[B, 1]``, and the logits ``[B, V]`` behind them."""


def choosing(
    choose: Callable[[Any, torch.Tensor, torch.Tensor], Choice],
    asked: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
) -> Callable[..., torch.Tensor]:
    """Four tokens, each chosen from the four likeliest; what the criteria are ``asked`` about."""

    def loop(model: Any, input_ids: torch.Tensor, stopping_criteria: Any, **_: Any) -> torch.Tensor:
        logits = of_everything(model, input_ids)
        for _step in range(4):
            candidates = logits.topk(4).indices
            chosen, logits = choose(model, input_ids, candidates)
            longer = torch.cat((input_ids, chosen), dim=-1)
            stopping_criteria(longer if asked is None else asked(input_ids, candidates), None)
            input_ids = longer
        return input_ids

    loop.__name__ = choose.__name__
    return loop


def of_the_first_two(model: Any, input_ids: torch.Tensor, candidates: torch.Tensor) -> Choice:
    return candidates[:, :1], trying(model, input_ids, candidates[:, :2])[:, 0]


def one_by_one(model: Any, input_ids: torch.Tensor, candidates: torch.Tensor) -> Choice:
    """As contrastive search with little memory: a forward pass for each token that is tried."""
    trying(model, input_ids, candidates[:, :1])
    return candidates[:, 1:2], trying(model, input_ids, candidates[:, 1:2])[:, 0]


def others_behind_a_failure(
    model: Any, input_ids: torch.Tensor, candidates: torch.Tensor
) -> Choice:
    """The forward pass over tokens that are tried fails, and is made again in another order."""
    unknown = torch.cat((torch.full_like(input_ids[:, :1], 10**6), input_ids[:, 1:]), dim=-1)
    with pytest.raises(IndexError):
        trying(model, unknown, candidates[:, :2])
    return candidates[:, :1], trying(model, input_ids, candidates[:, :2].flip(-1))[:, 1]


def in_two_parts(model: Any, input_ids: torch.Tensor, candidates: torch.Tensor) -> Choice:
    """Two forward passes of two tokens each, of which one in the second counts."""
    trying(model, input_ids, candidates[:, :2])
    return candidates[:, 2:3], trying(model, input_ids, candidates[:, 2:])[:, 0]


def in_another_order(model: Any, input_ids: torch.Tensor, candidates: torch.Tensor) -> Choice:
    """The first token of all sequences, and then the second of all."""
    rows = torch.cat((input_ids.repeat(2, 1), candidates[:, :2].T.reshape(-1, 1)), dim=-1)
    return candidates[:, 1:2], of_everything(model, rows)[-len(input_ids) :]


def more_rows_after_asking(
    model: Any, input_ids: torch.Tensor, stopping_criteria: Any, **_: Any
) -> torch.Tensor:
    """Goes on with two of each sequence, behind one token of all."""
    model(input_ids)
    for _step in range(4):
        input_ids = torch.cat((input_ids, torch.full_like(input_ids[:, :1], 7)), dim=-1)
        stopping_criteria(input_ids, None)
        input_ids = input_ids.repeat_interleave(2, 0)
        model(input_ids)
    return input_ids


def tries_again(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """The first forward pass fails, and the application catches it."""
    with pytest.raises(IndexError):
        model(torch.full_like(input_ids, 10**6))
    return uncached(model, input_ids)


def candidates(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Tries two tokens each time, as rows of one forward pass."""
    for _step in range(4):
        best = of_everything(model, input_ids).topk(2).indices
        peaks = trying(model, input_ids, best).amax(-1)
        input_ids = torch.cat((input_ids, best.gather(1, peaks.argmax(-1, keepdim=True))), dim=-1)
    return input_ids


def several_at_once(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Two tokens of one forward pass."""
    for _step in range(4):
        chosen = model(input_ids).logits[:, -1].topk(2).indices
        input_ids = torch.cat((input_ids, chosen), dim=-1)
    return input_ids


def other_tokens(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Returns other tokens than it went on with."""
    sequences = uncached(model, input_ids)
    sequences[:, -3] = 7
    return sequences


def tuples(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Asks the model for tuples."""
    for _step in range(4):
        newest = model(input_ids, return_dict=False)[0][:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, newest), dim=-1)
    return input_ids


def test_a_choice_of_tokens_that_were_tried_together() -> None:
    sequences, records = with_loop(choosing(of_the_first_two))
    assert all(record.steps == 4 for record in records)
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (two_equal_passes, NOT_ONE_EACH),
        (contrasting(of_the_newest, of_everything, steps=4), NOT_ONE_EACH),
        (contrasting(of_the_newest, of_everything, steps=1), NOT_ONE_EACH),
        (looking_twice_at_one_token(steps=4), NOT_ONE_EACH),
        (looking_twice_at_one_token(steps=1), NOT_ONE_EACH),
        (candidates, NOT_ONE_EACH),
        (choosing(one_by_one), NOT_ONE_EACH),
        (choosing(of_the_first_two, lambda input_ids, tried: input_ids), NOT_ONE_EACH),
        (choosing(of_the_first_two, lambda input_ids, tried: tried[:, 1:2]), NOT_ONE_EACH),
        (choosing(of_the_first_two, lambda input_ids, tried: tried[:1, :1]), NOT_ONE_EACH),
        (
            choosing(of_the_first_two, lambda input_ids, tried: tried[:, :2].reshape(-1, 1)),
            NOT_ONE_EACH,
        ),
        (choosing(others_behind_a_failure), NOT_ONE_EACH),
        (choosing(in_two_parts), NOT_ONE_EACH),
        (choosing(in_another_order), NOT_ONE_EACH),
        (more_rows_after_asking, NOT_ONE_EACH),
        (tries_again, NOT_ONE_EACH),
        (several_at_once, NOT_ONE_EACH),
        (other_tokens, NOT_ONE_EACH),
        (tuples, "the custom loop's forward passes return no logits"),
        (
            lambda model, input_ids, **_: input_ids,
            "the custom loop did not run the model itself",
        ),
        (
            lambda model, input_ids, **_: model(input_ids).logits[:, -1:].argmax(-1),
            "the custom loop returned no sequences that begin with the prompt",
        ),
        (
            lambda model, input_ids, **_: (uncached(model, input_ids), "a text")[1],
            "the custom loop returned no sequences that begin with the prompt",
        ),
    ],
)
def test_what_cannot_be_tied_says_why(loop: Callable[..., Any], reason: str) -> None:
    _, (record,) = with_loop(loop)
    assert not record.observed
    assert record.steps == 0
    assert record.capture.failures == 0
    for signal in ("logits", "hidden", "attention", "prompt"):
        assert getattr(record.capture, signal).reason == reason


def test_a_tensor_without_dimensions_is_no_sequence() -> None:
    _, (record,) = with_loop(lambda model, input_ids, **_: torch.tensor(3))
    assert record.steps == 0


def test_embeddings_as_prompt() -> None:
    model = tiny_model("llama")
    embeds = model.get_input_embeddings()(tiny_prompt(batch=2)).detach()
    expected = model.generate(inputs_embeds=embeds, max_new_tokens=9, do_sample=False)
    result, records = observe(
        model,
        inputs_embeds=embeds,
        custom_generate=library_loop,
        max_new_tokens=9,
        do_sample=False,
    )
    assert torch.equal(result, expected)
    _, others = observe(model, inputs_embeds=embeds, max_new_tokens=9, do_sample=False)
    for record, other in zip(records, others, strict=True):
        assert record.logits is not None
        assert other.logits is not None
        assert record.token_ids.tolist() == other.token_ids.tolist()
        assert record.logits.surprisal == pytest.approx(other.logits.surprisal, abs=1e-4)


@pytest.mark.parametrize("own_criteria", [False, True])
def test_a_folder_with_code_gets_the_arguments_as_they_are(
    tmp_path: Path, own_criteria: bool
) -> None:
    code = tmp_path / "custom_generate"
    code.mkdir()
    (code / "generate.py").write_text(
        "import torch\n\n"
        "def generate(model, inputs, stopping_criteria=None, logits_processor=None, **kwargs):\n"
        f"    assert (stopping_criteria == []) is {own_criteria}\n"
        f"    assert (stopping_criteria is None) is not {own_criteria}\n"
        "    assert logits_processor is None\n"
        "    for _ in range(6):\n"
        "        newest = model(inputs).logits[:, -1:].argmax(-1)\n"
        "        inputs = torch.cat((inputs, newest), dim=-1)\n"
        "    return inputs\n"
    )
    model = tiny_model("llama")
    criteria: dict[str, Any] = {"stopping_criteria": []} if own_criteria else {}
    with torch.no_grad():
        sequences, records = observe(
            model,
            inputs=tiny_prompt(batch=2),
            custom_generate=str(tmp_path),
            trust_remote_code=True,
            **criteria,
        )
    assert [record.steps for record in records] == [6, 6]
    assert_records_equal_forced(records, model, sequences, PROMPT)


def test_a_generation_inside_a_loop_is_one_of_its_own() -> None:
    def delegating(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        result: torch.Tensor = model.generate(input_ids, max_new_tokens=6, do_sample=False)
        return result

    _, (inner, *more) = with_loop(delegating)
    assert [record.steps for record in (inner, *more)] == [6, 6, 0]
    assert inner.observed
    assert more[-1].capture.logits.reason == "the custom loop did not run the model itself"


def test_an_exception_of_the_loop_reaches_the_caller() -> None:
    def broken(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        model(input_ids)
        raise KeyboardInterrupt

    with observing() as records, pytest.raises(KeyboardInterrupt):
        tiny_model("llama").generate(tiny_prompt(), custom_generate=broken, max_new_tokens=4)
    (record,) = records
    assert not record.observed
