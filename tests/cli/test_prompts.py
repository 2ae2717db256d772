"""Files of prompts, as text and as JSON lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.prompts import Prompt, digest, read_prompts, without_fields

CONVERSATION = [
    {"role": "user", "content": "One"},
    {"role": "assistant", "content": "Two"},
    {"role": "user", "content": "Three"},
]
NO_PROMPT = 'is no object with either a "prompt" or "messages"'
NO_MESSAGES = '"messages" must be a list of objects with a "role" and a "content"'


def write(name: str, content: str) -> str:
    Path(name).write_text(content, encoding="utf-8")
    return name


def test_text_has_a_prompt_a_line() -> None:
    path = write("p.txt", "  One \n\nTwo, {\n\n")

    assert read_prompts(path) == [Prompt(1, "One"), Prompt(3, "Two, {")]


def test_json_lines_have_a_prompt_and_more() -> None:
    path = write("p.jsonl", '{"prompt": "One\\ntwo", "label": 1}\n\n{"prompt": "Three"}\n')

    assert read_prompts(path) == [Prompt(1, "One\ntwo", {"label": 1}), Prompt(3, "Three")]


def test_json_lines_may_have_conversations() -> None:
    path = write("p.jsonl", json.dumps({"messages": CONVERSATION, "failed": True}))

    assert read_prompts(path) == [Prompt(1, CONVERSATION, {"failed": True})]


def test_objects_may_be_asked_for_whatever_the_name() -> None:
    path = write("p.txt", '{"prompt": "One"}\n')

    assert read_prompts(path, objects=True) == [Prompt(1, "One")]
    assert read_prompts(path) == [Prompt(1, '{"prompt": "One"}')]


def test_a_line_ends_where_a_line_of_json_does() -> None:
    text = "One\u2028and\u0085two"
    path = write("p.jsonl", f'\ufeff{{"prompt": "{text}"}}\r\n{{"prompt": "Three"}}')

    assert read_prompts(path) == [Prompt(1, text), Prompt(2, "Three")]


def test_only_the_first_may_be_wanted() -> None:
    path = write("p.txt", "One\nTwo\nThree\n")

    assert [prompt.content for prompt in read_prompts(path, 2)] == ["One", "Two"]
    assert len(read_prompts(path, 9)) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "\n \n", "p.txt has no prompts"),
        ("p.jsonl", "Hi\n", "p.jsonl, line 1 is not JSON: "),
        ("p.jsonl", '{"prompt": "Hi"}\n{"text": "Hi"}\n', f"p.jsonl, line 2 {NO_PROMPT}"),
        ("p.jsonl", '"Hi"\n', f"p.jsonl, line 1 {NO_PROMPT}"),
        ("p.jsonl", '{"prompt": "Hi", "messages": []}\n', f"p.jsonl, line 1 {NO_PROMPT}"),
        ("p.jsonl", '{"prompt": 3}\n', 'p.jsonl, line 1: "prompt" is no text'),
        ("p.jsonl", '{"prompt": " "}\n', 'p.jsonl, line 1: "prompt" is no text'),
        *(
            ("p.jsonl", json.dumps({"messages": messages}), f"p.jsonl, line 1: {NO_MESSAGES}")
            for messages in (
                [],
                "Hi",
                ["Hi"],
                [{"content": "Hi"}],
                [{"role": "user", "content": [{"type": "text"}]}],
                [{"role": "user", "content": "Hi", "name": "Ada"}],
            )
        ),
    ],
)
def test_what_is_no_prompt_is_named(name: str, content: str, said: str) -> None:
    with pytest.raises(CommandError) as raised:
        read_prompts(write(name, content))

    assert str(raised.value).startswith(said)
    assert raised.value.status == 2


def test_a_file_that_cannot_be_read() -> None:
    with pytest.raises(CommandError, match=r"cannot read none\.txt: No such file or directory"):
        read_prompts("none.txt")
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    with pytest.raises(CommandError, match=r"latin\.txt is not text in UTF-8"):
        read_prompts("latin.txt")


def test_the_digest_tells_prompts_apart() -> None:
    one, two = Prompt(1, "One"), Prompt(2, "Two")

    assert digest([one, two]) == digest([Prompt(8, "One"), two])
    assert len({digest(each) for each in ([one], [two], [one, two], [two, one])}) == 4
    assert digest([one]) != digest([Prompt(1, "One", {"label": 1})])
    assert digest([one]) != digest([Prompt(1, CONVERSATION)])


def test_a_digest_without_fields_is_that_of_the_prompts_alone() -> None:
    labelled = [Prompt(1, "One", {"failed": True}), Prompt(4, CONVERSATION, {"answers": ["Four"]})]

    assert without_fields(labelled) == [Prompt(1, "One"), Prompt(4, CONVERSATION)]
    assert labelled[0].fields == {"failed": True}
