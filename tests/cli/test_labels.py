"""Labels say that a run failed, or how to find out."""

from __future__ import annotations

from typing import Any

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.labels import Label, read_labels
from corevital.cli.prompts import Prompt


def read(**fields: Any) -> Label:
    (label,) = read_labels("l.jsonl", [Prompt(7, "One", fields)])
    return label


@pytest.mark.parametrize("failed", [True, False])
def test_a_label_holds_whatever_the_text(failed: bool) -> None:
    label = read(failed=failed, kind="fact")

    assert label.said is failed
    assert label.failed("anything") is failed


def test_answers_decide_by_the_text() -> None:
    label = read(answers=["Kyiv", "Kiev"])

    assert label.said is None
    assert label.failed("It is Lviv.")
    assert not label.failed("It is kiev.")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, ' has not either "answers" or "failed"'),
        ({"label": "failure"}, ' has not either "answers" or "failed"'),
        ({"answers": ["Paris"], "failed": True}, ' has not either "answers" or "failed"'),
        ({"failed": "no"}, ': "failed" must be true or false'),
        ({"failed": 1}, ': "failed" must be true or false'),
        ({"failed": None}, ': "failed" must be true or false'),
        ({"answers": "Paris"}, ': "answers" must be a list of texts'),
        ({"answers": []}, ': "answers" must be a list of texts'),
        ({"answers": ["Paris", 7]}, ': "answers" must be a list of texts'),
        ({"answers": ["Paris", "**"]}, ': "answers" must be a list of texts'),
    ],
)
def test_what_is_no_label_is_named_with_its_line(fields: dict[str, Any], said: str) -> None:
    prompts = [Prompt(1, "One", {"failed": True}), Prompt(3, "Two", fields)]
    with pytest.raises(CommandError) as raised:
        read_labels("l.jsonl", prompts)

    assert str(raised.value) == f"l.jsonl, line 3{said}"
    assert raised.value.status == 2
