"""Runs are graded, put together by prompt, and counted; those that say nothing are left out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from corevital.cli.errors import CommandError
from corevital.cli.labels import Label
from corevital.cli.prompt_runs import PromptResult
from corevital.cli.prompts import Messages, Prompt
from corevital.cli.risk_runs import risk_runs

RUNS = 120


def summary(number: int, text: str = "") -> dict[str, Any]:
    return {
        "text": text,
        "features": {"logits.entropy": float(number)},
        "estimators": {"entropy.mean": float(number)},
        "heuristic": number / RUNS,
        "uncalibrated": 1.0 - number / RUNS,
    }


def results(count: int = RUNS) -> list[PromptResult]:
    return [
        PromptResult(Prompt(number + 1, f"prompt {number}"), summary(number))
        for number in range(count)
    ]


def labels(count: int = RUNS) -> list[Label]:
    return [Label(said=number % 3 == 0) for number in range(count)]


def test_observations_labels_and_scores_stay_in_order() -> None:
    runs = risk_runs(results(), labels())

    assert runs.labelled.failed.tolist() == [number % 3 == 0 for number in range(RUNS)]
    assert [each.features["logits.entropy"] for each in runs.labelled.observations] == list(
        range(RUNS)
    )
    assert runs.others["heuristic"].tolist() == [number / RUNS for number in range(RUNS)]
    assert runs.others["uncalibrated"].tolist() == [1 - number / RUNS for number in range(RUNS)]
    assert runs.others.keys() == {"heuristic", "uncalibrated"}
    assert str(runs) == "120 runs of 120 prompts, 40 of which failed"


def test_answers_grade_the_text_of_the_run() -> None:
    found = [
        PromptResult(each.prompt, summary(number, "It is Rome." if number % 2 else "It is Oslo."))
        for number, each in enumerate(results())
    ]
    runs = risk_runs(found, [Label(answers=("Rome",))] * RUNS)

    assert runs.labelled.failed.tolist() == [number % 2 == 0 for number in range(RUNS)]


def test_equal_prompts_belong_together() -> None:
    hello = [{"role": "user", "content": "Hi"}]
    contents: list[str | Messages] = [
        "Hi",
        hello,
        *(f"prompt {number % 60}" for number in range(RUNS - 2)),
    ]
    found = [
        PromptResult(Prompt(line, content), summary(line)) for line, content in enumerate(contents)
    ]
    prompts = risk_runs(found, labels()).labelled.prompts

    assert len(np.unique(prompts)) == 62
    assert prompts[0] != prompts[1]
    assert prompts[2] == prompts[62]


def test_what_is_left_out_is_counted() -> None:
    found = results()
    found[3] = PromptResult(found[3].prompt, error="too long")
    found[4] = PromptResult(found[4].prompt, {"left_out": "NaN"})
    runs = risk_runs(found, labels())

    assert len(runs.labelled) == RUNS - 2
    assert {3.0, 4.0}.isdisjoint(runs.others["heuristic"] * RUNS)
    assert str(runs).endswith(
        "118 runs of 118 prompts, 39 of which failed; left out: 1 for error, 1 for NaN"
    )


def test_too_few_of_a_kind_are_an_error() -> None:
    with pytest.raises(CommandError, match=r"33 runs failed and 66 did not; .*; left out: none"):
        risk_runs(results(99), labels(99))
    with pytest.raises(CommandError, match="0 runs failed and 120 did not"):
        risk_runs(results(), [Label(said=False)] * RUNS)
    with pytest.raises(CommandError, match=r"0 runs failed and 0 did not; .*: 120 for error"):
        risk_runs([PromptResult(Prompt(1, "Hi"), error="x")] * RUNS, labels())
