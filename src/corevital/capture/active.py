"""The run that the current thread or task is observing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from corevital.capture.run import GenerationRun

active_run: ContextVar[GenerationRun | None] = ContextVar("corevital_active_run", default=None)
"""Set around ``generate``, so that threads, tasks and nested calls never see each other's run."""


@contextmanager
def unobserved() -> Iterator[None]:
    """Observe nothing that the current thread runs inside the block."""
    token = active_run.set(None)
    try:
        yield
    finally:
        active_run.reset(token)
