"""Where the commands that make calibrations write them, for which model and how it was run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from corevital.calibration.identity import ModelIdentity
from corevital.calibration.schema import Capture, Conditions
from corevital.cli.arguments import Decoding
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.load import LoadedModel
from corevital.cli.prompts import Prompt, digest
from corevital.record import CaptureMode
from corevital.settings import load_settings
from corevital.version import __version__


def output_file(path: str, option: str = "--out") -> Path:
    """The path of a file that can be written, given with ``option``.

    Raises:
        CommandError: it is a folder, or there is no folder to write it in.
    """
    out = Path(path)
    if out.is_dir():
        raise CommandError(f"{option} {path} is a folder", USAGE)
    if not out.parent.is_dir():
        raise CommandError(f"{option} {path}: there is no folder {out.parent}", USAGE)
    return out


def journal_path(out: Path) -> Path:
    """Where an unfinished command keeps what is done."""
    return out.with_name(f"{out.name}.partial.jsonl")


def identity_of(loaded: LoadedModel) -> ModelIdentity:
    """The identity of a loaded model, as the instrumentation will see it."""
    from corevital.capture.observation import describe_model

    return ModelIdentity.of(describe_model(loaded.model))


def conditions(loaded: LoadedModel, prompts: Sequence[Prompt], decoding: Decoding) -> Conditions:
    """How ``prompts`` are run."""
    return Conditions(
        prompts=digest(prompts),
        chat_template=loaded.has_chat_template,
        device=loaded.device,
        dtype=loaded.dtype,
        **{each.name: getattr(decoding, each.name) for each in fields(Decoding)},
    )


def origin(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    settings: dict[str, Any],
    *packages: str,
) -> dict[str, Any]:
    """The fields of a calibration that say for which model, how, when and with what it was made.

    Versions are those of CoreVital and what it observes, and of ``packages``.
    """
    return {
        "model": identity_of(loaded),
        "conditions": conditions(loaded, prompts, decoding),
        "capture": Capture(mode=CaptureMode.FULL, top_k=load_settings(**settings).top_k),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "created_with": {
            "corevital": __version__,
            **{name: version(name) for name in ("torch", "transformers", *packages)},
        },
    }


def write_whole(out: Path, content: bytes) -> None:
    """Write the file whole or not at all.

    Raises:
        CommandError: it cannot be written.
    """
    unfinished = out.with_name(f"{out.name}.tmp")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, out)
    except OSError as error:
        raise CommandError(f"cannot write {out}: {error.strerror}") from error
