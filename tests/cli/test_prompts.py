"""Files of prompts, as text and as JSON lines."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.prompts import Prompt, digest, read_prompts


def write(name: str, content: str) -> str:
    Path(name).write_text(content, encoding="utf-8")
    return name


def test_text_has_a_prompt_a_line() -> None:
    path = write("p.txt", "  One \n\nTwo, {\n\n")

    assert read_prompts(path) == [Prompt(1, "One"), Prompt(3, "Two, {")]


def test_json_lines_have_a_prompt_and_more() -> None:
    path = write("p.jsonl", '{"prompt": "One\\ntwo", "label": 1}\n\n{"prompt": "Three"}\n')

    assert read_prompts(path) == [Prompt(1, "One\ntwo", {"label": 1}), Prompt(3, "Three")]


def test_only_the_first_may_be_wanted() -> None:
    path = write("p.txt", "One\nTwo\nThree\n")

    assert [prompt.text for prompt in read_prompts(path, 2)] == ["One", "Two"]
    assert len(read_prompts(path, 9)) == 3


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "\n \n", "p.txt has no prompts"),
        ("p.jsonl", "Hi\n", "p.jsonl, line 1 is not JSON: "),
        ("p.jsonl", '{"prompt": "Hi"}\n{"text": "Hi"}\n', 'p.jsonl, line 2 has no "prompt"'),
        ("p.jsonl", '"Hi"\n', 'p.jsonl, line 1 has no "prompt"'),
        ("p.jsonl", '{"prompt": 3}\n', 'p.jsonl, line 1 has no "prompt"'),
        ("p.jsonl", '{"prompt": " "}\n', 'p.jsonl, line 1 has no "prompt"'),
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
