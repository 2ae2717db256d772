"""Where the commands that make calibrations write them, and for which model."""

from __future__ import annotations

import os
from pathlib import Path

from corevital.calibration.identity import ModelIdentity
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.load import LoadedModel


def output_file(path: str) -> Path:
    """The path of a file that can be written.

    Raises:
        CommandError: it is a folder, or there is no folder to write it in.
    """
    out = Path(path)
    if out.is_dir():
        raise CommandError(f"--out {path} is a folder", USAGE)
    if not out.parent.is_dir():
        raise CommandError(f"--out {path}: there is no folder {out.parent}", USAGE)
    return out


def journal_path(out: Path) -> Path:
    """Where an unfinished command keeps what is done."""
    return out.with_name(f"{out.name}.partial.jsonl")


def identity_of(loaded: LoadedModel) -> ModelIdentity:
    """The identity of a loaded model, as the instrumentation will see it."""
    from corevital.capture.observation import describe_model

    return ModelIdentity.of(describe_model(loaded.model))


def write_calibration(out: Path, content: str) -> None:
    """Write the file whole or not at all.

    Raises:
        CommandError: it cannot be written.
    """
    unfinished = out.with_name(f"{out.name}.tmp")
    try:
        unfinished.write_text(content + "\n", encoding="utf-8")
        os.replace(unfinished, out)
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error.strerror}") from error
