"""Shows how far a long command is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_SECONDS_BETWEEN_LINES: Final = 30.0


@contextmanager
def progress(
    console: Console, things: str, total: int, done: int = 0
) -> Iterator[Callable[[int], None]]:
    """A bar at a terminal, else a line now and then; call the result with how many are done."""
    if not console.is_terminal:
        yield _lines(console, things, total)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(things.capitalize(), total=total, completed=done)
        yield lambda count: bar.update(task, completed=count)


def _lines(console: Console, things: str, total: int) -> Callable[[int], None]:
    said = time.monotonic()

    def show(done: int) -> None:
        nonlocal said
        if time.monotonic() - said >= _SECONDS_BETWEEN_LINES:
            said = time.monotonic()
            console.print(f"{done} of {total} {things}", highlight=False)

    return show
