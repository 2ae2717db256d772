"""A journal keeps what is done, whatever cuts it short, and never mixes two jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital.cli.errors import CommandError
from corevital.cli.journal import Journal

HEADER = {"task": "test", "model": {"name": "m"}, "prompts": "sha256:0"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "out.json.partial.jsonl"


def begun(path: Path) -> Journal:
    journal = Journal(path, HEADER)
    journal.add(0, {"value": 1.5})
    journal.add(2, None)
    return journal


def test_is_empty_at_first(path: Path) -> None:
    journal = Journal(path, HEADER)

    assert journal.entries == {}
    assert path.exists()
    journal.delete()
    assert not path.exists()


def test_entries_are_found_again(path: Path) -> None:
    begun(path)
    journal = Journal(path, HEADER)
    assert journal.entries == {0: {"value": 1.5}, 2: None}
    journal.add(1, "new")

    assert Journal(path, HEADER).entries == {0: {"value": 1.5}, 2: None, 1: "new"}


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_short_is_done_again(path: Path, cut: int) -> None:
    begun(path)
    path.write_bytes(path.read_bytes()[:-cut])
    journal = Journal(path, HEADER)

    assert journal.entries == {0: {"value": 1.5}}
    journal.add(2, "again")
    assert Journal(path, HEADER).entries == {0: {"value": 1.5}, 2: "again"}


def test_a_header_that_was_cut_short_is_written_again(path: Path) -> None:
    path.write_bytes(b'{"task": "te')

    assert Journal(path, HEADER).entries == {}
    assert Journal(path, HEADER).entries == {}


def test_another_job_is_refused(path: Path) -> None:
    begun(path)
    before = path.read_bytes()
    other = HEADER | {"prompts": "sha256:1", "model": {"name": "n"}}
    with pytest.raises(CommandError, match="unfinished run with other model, prompts") as raised:
        Journal(path, other)

    assert "--restart" in str(raised.value)
    assert raised.value.status == 2
    assert path.read_bytes() == before


def test_a_restart_forgets_everything(path: Path) -> None:
    begun(path)
    other = HEADER | {"prompts": "sha256:1"}

    assert Journal(path, other, restart=True).entries == {}
    assert Journal(path, other).entries == {}


@pytest.mark.parametrize("content", ["{}\nnonsense\n", "[]\n3\n", "{}\n{}\n"])
def test_a_damaged_journal_is_not_overwritten(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(CommandError, match="is damaged; --restart begins anew"):
        Journal(path, HEADER)

    assert path.read_text() == content


def test_a_journal_of_another_layout_is_another_job(path: Path) -> None:
    path.write_text('{"task": "other"}\n')

    with pytest.raises(CommandError, match="unfinished run with other contents"):
        Journal(path, HEADER)


def test_a_journal_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match=r"cannot write .*: No such file or directory"):
        Journal(tmp_path / "none" / "journal", HEADER)
