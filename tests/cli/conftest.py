"""The command, run in this process or in one of its own, and models to run it on."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from corevital.cli import main
from scripts.smollm2 import safetensors_folder
from tests.models import VOCABULARY, GenerativeModel, tiny_model

SOURCES = Path(__file__).parents[2] / "src"


class Finished(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Command = Callable[..., Finished]


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of the test's own, in which the command writes its files."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def smollm2_folder() -> str:
    """SmolLM2-135M-Instruct as a folder of safetensors."""
    return str(safetensors_folder())


@pytest.fixture
def corevital(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def run(*arguments: str) -> Finished:
        status = main(arguments)
        captured = capsys.readouterr()
        return Finished(status, captured.out, captured.err)

    return run


@pytest.fixture
def ask(corevital: Command, smollm2_folder: str) -> Command:
    """Run ``corevital run`` on the real model; what is given again replaces what is given here."""

    def run(*arguments: str) -> Finished:
        return corevital(
            "run", "--model", smollm2_folder, "--prompt", "Hi", "--max-new-tokens", "4", *arguments
        )

    return run


def process(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    """Start ``python -m corevital`` as a process, with variables of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "corevital", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(SOURCES)} | environment,
    )


def finished(started: subprocess.Popen[str], timeout: float = 120) -> Finished:
    """Wait for a process."""
    out, err = started.communicate(timeout=timeout)
    return Finished(started.returncode, out, err)


@pytest.fixture
def tiny_folder(tmp_path: Path) -> Callable[..., str]:
    """Save tiny models in the test's folder: see ``save_tiny``."""
    return functools.partial(save_tiny, tmp_path)


def save_tiny(
    parent: Path, family: str, change: Callable[[GenerativeModel], Any] | None = None
) -> str:
    """Save a tiny model of a family, with a tokenizer that has no chat template, as a folder."""
    model = tiny_model(family)
    if change is not None:
        change(model)
    folder = parent / f"tiny-{family}"
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = ["<pad>", "</s>", "<s>", *(f"word{number}" for number in range(3, VOCABULARY))]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="word3"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )
