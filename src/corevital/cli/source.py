"""Finds what ``--model`` names: a GGUF file, a folder, or a model of the Hugging Face Hub."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from corevital.cli.errors import CommandError, first_line

_HUB_TIMEOUT_S: Final = 10.0
_GGUF_PACKAGES: Final = ("gguf", "accelerate")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model is loaded from: a folder, or a hub id whose files may be downloaded.

    ``gguf_file`` is the name of the GGUF file in that folder. ``local_only``: the hub cannot be
    asked, so only what its cache holds is there.
    """

    location: str
    gguf_file: str | None = None
    on_hub: bool = False
    local_only: bool = False

    @property
    def name(self) -> str:
        """The model as its user calls it."""
        if self.gguf_file is not None:
            return Path(self.gguf_file).stem
        return self.location if self.on_hub else Path(self.location).resolve().name


def locate(model: str) -> Source:
    """The source that ``model`` names.

    Raises:
        CommandError: it names nothing that can be loaded.
    """
    path = Path(model).expanduser()
    if path.suffix.lower() == ".gguf":
        return _gguf_file(path)
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        raise CommandError(f"{model} is no GGUF file; name the folder that holds its config.json")
    return _hub_model(model)


def _gguf_file(path: Path) -> Source:
    if not path.is_file():
        raise CommandError(f"there is no file {path}")
    missing = [package for package in _GGUF_PACKAGES if find_spec(package) is None]
    if missing:
        raise CommandError(
            f"GGUF files need {' and '.join(missing)}, not installed here: "
            'pip install "corevital[gguf]"'
        )
    return Source(str(path.parent), path.name)


def _folder(path: Path) -> Source:
    if (path / "config.json").is_file():
        return Source(str(path))
    files = sorted(file.name for file in path.glob("*.gguf"))
    hint = f"; name one of its GGUF files: {', '.join(files)}" if files else ""
    raise CommandError(f"the folder {path} holds no config.json{hint}")


def _hub_model(name: str) -> Source:
    """A model of the hub; asked for once and first, because a download retries for a long time."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    try:
        HfApi().model_info(name, timeout=_HUB_TIMEOUT_S)
    except HFValidationError:
        raise CommandError(f"{name} is no file, no folder, and no name of a hub model") from None
    except GatedRepoError as error:
        raise no_access(name) from error
    except RepositoryNotFoundError as error:
        raise CommandError(
            f"the Hugging Face Hub has no model {name}, or none that you may see (hf auth login), "
            "and there is no such folder"
        ) from error
    except HfHubHTTPError:
        # A mirror need not answer this question to serve files.
        return Source(name, on_hub=True)
    except OfflineModeIsEnabled as error:
        return _cached(name, "offline mode is on (HF_HUB_OFFLINE)", error)
    except Exception as error:
        # No connection is an exception of whichever HTTP library this release of the hub uses.
        return _cached(name, f"the Hugging Face Hub cannot be reached: {first_line(error)}", error)
    return Source(name, on_hub=True)


def _cached(name: str, obstacle: str, error: Exception) -> Source:
    from huggingface_hub import try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return Source(name, on_hub=True, local_only=True)
    raise CommandError(
        f"{name} is no local folder and not in the hub's cache, and {obstacle}"
    ) from error


def no_access(name: str) -> CommandError:
    """The failure of a model whose files are given only to some."""
    return CommandError(
        f"access to {name} is restricted: ask for it on the model's page, then hf auth login"
    )
