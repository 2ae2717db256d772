"""Reads files of prompts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from corevital.cli.errors import USAGE, CommandError

Messages = list[dict[str, str]]
"""A conversation: a ``role`` and a ``content`` each."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a file: a text or a conversation.

    ``line`` counts from one, ``fields`` are what else its object has.
    """

    line: int
    content: str | Messages
    fields: dict[str, Any] = field(default_factory=dict)


def read_prompts(path: str, limit: int | None = None, *, objects: bool = False) -> list[Prompt]:
    """The prompts of a file, in its order, at most ``limit``; empty lines are none.

    With ``objects``, or when it is named ``.jsonl``, a file has JSON objects with a ``prompt`` or
    ``messages``; any other has a prompt a line.

    Raises:
        CommandError: it cannot be read, a line is no prompt, or there is none.
    """
    try:
        # What else str.splitlines takes for the end of a line may stand inside a JSON text.
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}", USAGE) from error
    except UnicodeDecodeError as error:
        raise CommandError(f"{path} is not text in UTF-8", USAGE) from error
    objects = objects or Path(path).suffix.lower() == ".jsonl"
    prompts = list(_objects(path, lines) if objects else _texts(lines))[:limit]
    if not prompts:
        raise CommandError(f"{path} has no prompts", USAGE)
    return prompts


def digest(prompts: Iterable[Prompt]) -> str:
    """A digest of everything that ``prompts`` say, the same for the same ones in the same order."""
    content = json.dumps([[prompt.content, prompt.fields] for prompt in prompts], sort_keys=True)
    return f"sha256:{hashlib.sha256(content.encode()).hexdigest()}"


def without_fields(prompts: Iterable[Prompt]) -> list[Prompt]:
    """``prompts`` as if their objects had nothing else."""
    return [replace(prompt, fields={}) for prompt in prompts]


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
        if not isinstance(fields, dict) or len(fields.keys() & {"prompt", "messages"}) != 1:
            raise CommandError(
                f'{path}, line {number} is no object with either a "prompt" or "messages"', USAGE
            )
        if "prompt" in fields:
            content = fields.pop("prompt")
            if not isinstance(content, str) or not content.strip():
                raise CommandError(f'{path}, line {number}: "prompt" is no text', USAGE)
        else:
            content = fields.pop("messages")
            if not isinstance(content, list) or not content or not all(map(_is_message, content)):
                raise CommandError(
                    f'{path}, line {number}: "messages" must be a list of objects with a "role" '
                    'and a "content", both texts, and nothing else',
                    USAGE,
                )
        yield Prompt(number, content, fields)


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )
