"""Reads files of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from corevital.cli.errors import USAGE, CommandError


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a file; ``line`` counts from one, ``fields`` are what else its object has."""

    line: int
    text: str
    fields: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str, limit: int | None = None) -> list[Prompt]:
    """The prompts of a file, in its order, at most ``limit``; empty lines are none.

    A file named ``.jsonl`` has objects with a ``prompt``, any other a prompt a line.

    Raises:
        CommandError: it cannot be read, a line is no prompt, or there is none.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", USAGE) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not text in UTF-8", USAGE) from error
    is_jsonl = Path(path).suffix.lower() == ".jsonl"
    prompts = list(_objects(path, lines) if is_jsonl else _texts(lines))[:limit]
    if not prompts:
        raise CommandError(f"{path} has no prompts", USAGE)
    return prompts


def digest(prompts: Iterable[Prompt]) -> str:
    """A digest of everything that ``prompts`` say, the same for the same ones in the same order."""
    content = json.dumps([[prompt.text, prompt.fields] for prompt in prompts], sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def _texts(lines: list[str]) -> Iterator[Prompt]:
    for number, line in enumerate(lines, 1):
        if text := line.strip():
            yield Prompt(number, text)


def _objects(path: str, lines: list[str]) -> Iterator[Prompt]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise CommandError(f"{path}, line {number} is not JSON: {error}", USAGE) from error
        text = fields.pop("prompt", None) if isinstance(fields, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise CommandError(f'{path}, line {number} has no "prompt" that is a text', USAGE)
        yield Prompt(number, text, fields)
