"""Many prompts are run in order, each is summarised once, and what is done is not done again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from corevital.cli.arguments import Decoding
from corevital.cli.errors import CommandError
from corevital.cli.journal import Journal
from corevital.cli.load import LoadedModel
from corevital.cli.observe import observation_settings
from corevital.cli.prompt_runs import PromptResult, run_prompts
from corevital.cli.prompts import Prompt
from corevital.record import CaptureMode

DECODING = Decoding(max_new_tokens=4, temperature=1.2, top_k=None, top_p=None, seed=3)
PROMPTS = [Prompt(line, f"word{line + 5} word9", {"label": line % 2}) for line in range(1, 5)]


@pytest.fixture
def loaded(tiny_folder: Callable[..., str]) -> LoadedModel:
    folder = tiny_folder("llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    return LoadedModel(model, AutoTokenizer.from_pretrained(folder), "cpu", "float32")


def run(
    loaded: LoadedModel,
    journal: Journal,
    summarize: Callable[..., Any],
    prompts: list[Prompt] = PROMPTS,
    decoding: Decoding = DECODING,
) -> list[PromptResult]:
    heard: list[PromptResult] = []
    settings = observation_settings(CaptureMode.FULL)
    results = run_prompts(loaded, prompts, decoding, settings, journal, summarize, heard.append)
    assert heard == results
    return results


def journal(name: str = "journal") -> Journal:
    return Journal(Path(name), {})


def tokens(prompt: Prompt, observed: Any, text: str) -> list[int]:
    tokens: list[int] = observed.record.token_ids.tolist()
    return tokens


def test_a_summary_is_made_of_the_prompt_what_was_observed_and_the_text(
    loaded: LoadedModel,
) -> None:
    def summarize(prompt: Prompt, observed: Any, text: str) -> dict[str, Any]:
        return {
            "label": prompt.fields["label"],
            "layers": len(observed.record.hidden.layers),
            "same": text == loaded.tokenizer.decode(observed.record.token_ids),
            "assessed": observed.assessment is not None,
        }

    results = run(loaded, journal(), summarize)

    assert [result.prompt for result in results] == PROMPTS
    assert [result.summary["label"] for result in results] == [1, 0, 1, 0]
    assert all(result.summary["layers"] == 4 for result in results)
    assert all(result.summary["same"] and result.summary["assessed"] for result in results)


def test_what_was_sampled_does_not_depend_on_what_was_run_before(loaded: LoadedModel) -> None:
    whole = run(loaded, journal("one"), tokens)
    resumed = journal("two")
    for number in (0, 2):
        resumed.add(number, whole[number].summary)

    assert run(loaded, resumed, tokens) == whole
    other = Decoding(max_new_tokens=4, temperature=1.2, top_k=None, top_p=None, seed=4)
    assert run(loaded, journal("three"), tokens, decoding=other) != whole


def test_what_is_done_is_kept_and_not_done_again(loaded: LoadedModel) -> None:
    run(loaded, journal(), tokens)

    def never(prompt: Prompt, observed: Any, text: str) -> None:
        raise AssertionError

    assert len(run(loaded, journal(), never)) == len(PROMPTS)


def test_a_prompt_that_fails_is_told_and_not_kept(loaded: LoadedModel) -> None:
    prompts = [PROMPTS[0], Prompt(9, " ".join(["word5"] * 2000)), PROMPTS[1]]
    kept = journal()
    results = run(loaded, kept, tokens, prompts)

    assert [result.error is None for result in results] == [True, False, True]
    assert "exceed the 1024 tokens" in str(results[1].error)
    assert kept.entries.keys() == {0, 2}


def test_a_summary_that_fails_is_a_failure_of_the_command(loaded: LoadedModel) -> None:
    def broken(prompt: Prompt, observed: Any, text: str) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(loaded, journal(), broken)


def test_an_interruption_says_how_to_go_on(loaded: LoadedModel) -> None:
    def interrupted(prompt: Prompt, observed: Any, text: str) -> int:
        if prompt.line == 3:
            raise KeyboardInterrupt
        return prompt.line

    with pytest.raises(CommandError, match="interrupted after 2 of 4 prompts") as raised:
        run(loaded, journal(), interrupted)

    assert raised.value.status == 130
    assert journal().entries == {0: 1, 1: 2}


def test_memory_that_is_used_up_ends_the_command(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*args: Any, **kwargs: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(loaded.model, "forward", exhausted)
    with pytest.raises(MemoryError):
        run(loaded, journal(), tokens)
