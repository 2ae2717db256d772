"""Runs a file of prompts, and shows how far it is and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.console import Console

from corevital.cli.arguments import PromptRunsOptions
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.journal import Journal
from corevital.cli.load import LoadedModel, warner
from corevital.cli.progress import progress
from corevital.cli.prompt_runs import PromptResult, Summarize, run_prompts
from corevital.cli.prompts import Prompt

FAILED: Final = "error"
LEFT_OUT: Final = "left_out"
"""The key under which a summary says why its run is left out."""


def check_chat(loaded: LoadedModel, prompts: Sequence[Prompt], path: str) -> None:
    """Check that the model can be given every prompt of the file.

    Raises:
        CommandError: one is a conversation, and the model has no chat template.
    """
    if loaded.has_chat_template:
        return
    for prompt in prompts:
        if not isinstance(prompt.content, str):
            raise CommandError(
                f"{path}, line {prompt.line} has messages, and the model has no chat template",
                USAGE,
            )


def run_file(
    loaded: LoadedModel,
    prompts: Sequence[Prompt],
    options: PromptRunsOptions,
    settings: dict[str, Any],
    journal: Journal,
    summarize: Summarize,
    notes: Console,
) -> list[PromptResult]:
    """Run what the journal lacks, and say on ``notes`` how it goes.

    Raises:
        CommandError: as `corevital.cli.prompt_runs.run_prompts`.
    """
    if journal.entries:
        notes.print(
            f"Going on after {len(journal.entries)} of {len(prompts)} prompts",
            style="dim",
            highlight=False,
        )
    with progress(notes, "prompts", len(prompts), len(journal.entries)) as show:
        listen = _listener(options.prompts, warner(notes), show)
        return run_prompts(loaded, prompts, options, settings, journal, summarize, listen)


def left_out(result: PromptResult) -> str | None:
    """Why a run does not count, if it does not."""
    if result.error is not None:
        return FAILED
    reason: str | None = result.summary.get(LEFT_OUT)
    return reason


def counted(reasons: Counter[str]) -> str:
    """Reasons and how often each was one, in words."""
    return ", ".join(f"{count} for {reason}" for reason, count in reasons.most_common())


def _listener(
    path: str, warn: Callable[[str], None], show: Callable[[int], None]
) -> Callable[[PromptResult], None]:
    done = 0

    def listen(result: PromptResult) -> None:
        nonlocal done
        done += 1
        if (reason := left_out(result)) is not None:
            detail = f": {result.error}" if result.error is not None else ""
            warn(f"{path}, line {result.prompt.line} is left out: {reason}{detail}")
        show(done)

    return listen
