"""Custom decoding loops: observed where their tokens are those of their forward passes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationMixin

from corevital import GenerationRecord
from tests.capture.observe import observe, observing
from tests.capture.teacher_forcing import assert_records_equal_forced
from tests.models import tiny_model, tiny_prompt

PROMPT = 12
TOKENS = 40
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


def uncached(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Greedy, without a cache, and without a look at the stopping criteria."""
    for _step in range(TOKENS):
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


def library_loop(model: Any, input_ids: Any, **options: Any) -> Any:
    """The library's own."""
    return GenerationMixin._sample(model, input_ids, **options)


@pytest.mark.parametrize("loop", [uncached, cached, inferring, library_loop])
def test_a_loop_with_one_forward_pass_for_each_token(loop: Callable[..., Any]) -> None:
    sequences, records = with_loop(loop)
    assert [record.steps for record in records] == [TOKENS, TOKENS]
    assert_records_equal_forced(records, tiny_model("llama"), sequences, PROMPT)
    for record in records:
        times = record.step_time_ns.tolist()
        assert times == sorted(times)
        assert record.start_time_ns < times[0] <= times[-1] <= record.end_time_ns


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


def two_passes(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Contrastive decoding: against the model's view of the newest token alone."""
    for _step in range(4):
        whole = model(input_ids).logits[:, -1].log_softmax(-1)
        alone = model(input_ids[:, -1:]).logits[:, -1].log_softmax(-1)
        chosen = (whole - 0.5 * alone).argmax(-1, keepdim=True)
        input_ids = torch.cat((input_ids, chosen), dim=-1)
    return input_ids


def candidates(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    """Tries two tokens each time, as rows of one forward pass."""
    for _step in range(4):
        best = model(input_ids).logits[:, -1].topk(2).indices
        tried = torch.cat((input_ids.repeat_interleave(2, 0), best.view(-1, 1)), dim=-1)
        peaks = model(tried).logits[:, -1].amax(-1).view(best.shape)
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


@pytest.mark.parametrize(
    ("loop", "reason"),
    [
        (two_passes, NOT_ONE_EACH),
        (candidates, NOT_ONE_EACH),
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
