"""Loads a model with its tokenizer."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
)
from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from corevital.cli.errors import CommandError, causes, first_line, is_out_of_memory
from corevital.cli.quiet import quiet_libraries
from corevital.cli.source import Source, no_access

_NAMED_WEIGHTS: Final = 3


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to generate; ``device`` and ``dtype`` in words."""

    model: Any
    tokenizer: Any
    device: str
    dtype: str

    @property
    def has_chat_template(self) -> bool:
        """Whether prompts go through a template that makes them a conversation."""
        return bool(getattr(self.tokenizer, "chat_template", None))


def loading_status(console: Console, source: Source) -> AbstractContextManager[object]:
    """Show that a model is being loaded.

    A download draws progress bars of its own, with which a live display would interfere.
    """
    if source.on_hub or not console.is_terminal:
        console.print(f"Loading {source.name} ...", style="dim", highlight=False, markup=False)
        return nullcontext()
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    progress.add_task(f"Loading {source.name}", total=None)
    return progress


def warner(console: Console) -> Callable[[str], None]:
    """Says warnings on ``console``."""

    def warn(message: str) -> None:
        console.print(f"warning: {message}", markup=False, highlight=False, soft_wrap=True)

    return warn


@contextmanager
def loaded_model(
    source: Source, device: str, notes: Console, *, debug: bool
) -> Iterator[LoadedModel]:
    """The model of ``source``, announced on ``notes``; inside the block the libraries are quiet.

    With ``debug`` they are not.

    Raises:
        CommandError: it cannot be loaded; the message says why.
    """
    with ExitStack() as stack:
        with loading_status(notes, source):
            if not debug:
                stack.enter_context(quiet_libraries(show_downloads=notes.is_terminal))
            loaded = load_model(source, device, warner(notes))
        yield loaded


def choose_device(device: str) -> str:
    """The device that ``auto``, ``cpu`` or ``cuda`` means here.

    Raises:
        CommandError: there is no such device.
    """
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise CommandError(
            f"--device cuda: this PyTorch ({torch.__version__}) finds no CUDA device"
        )
    return "cuda" if available and device != "cpu" else "cpu"


def load_model(source: Source, device: str, warn: Callable[[str], None]) -> LoadedModel:
    """The model and tokenizer of ``source``, the model on ``device``, in the checkpoint's dtype.

    Raises:
        CommandError: it cannot be loaded; the message says why.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    chosen = choose_device(device)
    # Without an answer to whether its code may run, transformers asks at the terminal.
    where: dict[str, Any] = {"local_files_only": source.local_only, "trust_remote_code": False}
    if source.gguf_file is not None:
        where["gguf_file"] = source.gguf_file
    try:
        with _conversion_unseen(source):
            config = AutoConfig.from_pretrained(source.location, **where)
            tokenizer = AutoTokenizer.from_pretrained(source.location, **where)
            factory: Any = AutoModelForCausalLM
            if config.is_encoder_decoder:
                factory = AutoModelForSeq2SeqLM
            model, info = factory.from_pretrained(
                source.location, dtype="auto", output_loading_info=True, **where
            )
            model = model.to(chosen).eval()
    except Exception as error:
        raise _failure(source, error) from error
    if source.gguf_file is not None:
        # Its telemetry would otherwise be named after the folder that the file is in.
        model.name_or_path = source.name
    _warn_of_missing_weights(info, warn)
    return LoadedModel(model, tokenizer, str(model.device), str(model.dtype).removeprefix("torch."))


def _conversion_unseen(source: Source) -> AbstractContextManager[object]:
    """Hide the progress bar of the conversion from GGUF, which has no switch of its own."""
    return redirect_stderr(io.StringIO()) if source.gguf_file is not None else nullcontext()


def _failure(source: Source, error: Exception) -> Exception:
    if is_out_of_memory(error):
        return error
    for cause in causes(error):
        if type(cause).__name__ == "GatedRepoError":
            return no_access(source.location)
    return CommandError(f"cannot load {source.name}: {first_line(error)}")


def _warn_of_missing_weights(info: dict[str, Any], warn: Callable[[str], None]) -> None:
    missing = sorted(info["missing_keys"])
    if missing:
        named = ", ".join(missing[:_NAMED_WEIGHTS])
        more = ", ..." if len(missing) > _NAMED_WEIGHTS else ""
        warn(f"the checkpoint lacks {len(missing)} weights, which are now random: {named}{more}")
