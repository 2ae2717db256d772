"""Waits for what a server does in its own time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")


def eventually(look: Callable[[], Found], patience_s: float = 30) -> Found:
    """Return the first result of ``look`` that is true; TimeoutError, with the last, for none."""
    deadline = time.monotonic() + patience_s
    while not (found := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience_s} s, but {found!r}")
        time.sleep(0.1)
    return found
