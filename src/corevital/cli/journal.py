"""Keeps what a long command has done, so that it can go on after an interruption."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from corevital.cli.errors import USAGE, CommandError


class Journal:
    """JSON lines: a header that says what is being done, then one entry for each part done.

    A line counts once its newline is written, so what an interruption cut short is done again.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, restart: bool = False) -> None:
        """Open the journal at ``path``, or begin it.

        Raises:
            CommandError: it belongs to something else, is damaged, or cannot be written.
        """
        self.path = path
        self.entries: dict[int, Any] = {}
        try:
            done = path.read_bytes() if path.exists() and not restart else b""
            whole = done[: done.rfind(b"\n") + 1]
            if whole:
                self._read(whole, header)
            if path.exists():
                os.truncate(path, len(whole))
            if not whole:
                self._write(header)
        except OSError as error:
            raise _failure(path, error) from error

    def add(self, number: int, value: Any) -> None:
        """Keep ``value``, which JSON has to be able to say, for part ``number``.

        Raises:
            CommandError: it cannot be written.
        """
        self.entries[number] = value
        try:
            self._write({"number": number, "value": value})
        except OSError as error:
            raise _failure(self.path, error) from error

    def delete(self) -> None:
        """Remove the file: all is done."""
        self.path.unlink(missing_ok=True)

    def _read(self, whole: bytes, header: dict[str, Any]) -> None:
        try:
            first, *lines = (json.loads(line) for line in whole.splitlines())
            self.entries = {line["number"]: line["value"] for line in lines}
        except (ValueError, KeyError, TypeError) as error:
            raise CommandError(f"{self.path} is damaged; --restart begins anew", USAGE) from error
        if first != header:
            same = isinstance(first, dict) and first.keys() == header.keys()
            different = [name for name in header if first[name] != header[name]] if same else []
            raise CommandError(
                f"{self.path} keeps an unfinished run with other "
                f"{', '.join(different) or 'contents'}: give the same again to finish it, "
                "or --restart to begin anew",
                USAGE,
            )

    def _write(self, line: Any) -> None:
        with open(self.path, "ab") as file:
            file.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _failure(path: Path, error: OSError) -> CommandError:
    return CommandError(f"cannot write {path}: {error.strerror}")
