"""Failures as users read them: one line, and an exit status."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

FAILURE: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130

# What torch and the libraries under it say when the operating system refuses memory.
_OUT_OF_MEMORY: Final = ("allocate memory", "not enough memory", "out of memory")


class CommandError(Exception):
    """A failure whose message tells the user what to do; ``status`` is the exit status."""

    def __init__(self, message: str, status: int = FAILURE) -> None:
        super().__init__(message)
        self.status = status


def command_error(error: Exception) -> CommandError:
    """The failure that ``error`` is to the user."""
    if isinstance(error, CommandError):
        return error
    if is_out_of_memory(error):
        return CommandError(
            f"not enough memory ({first_line(error)}); try a smaller model, a shorter prompt or "
            "fewer --max-new-tokens"
        )
    return CommandError(f"{type(error).__name__}: {first_line(error)} (--debug shows where)")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of the machine or of its accelerator, is used up."""
    return any(
        isinstance(cause, MemoryError)
        or type(cause).__name__ == "OutOfMemoryError"
        or (
            isinstance(cause, RuntimeError | OSError)
            and any(words in str(cause).lower() for words in _OUT_OF_MEMORY)
        )
        for cause in causes(error)
    )


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error``, what caused it, what caused that, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of the message that is not empty, or the name of the exception's type."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line.rstrip(".") for line in lines if line), type(error).__name__)
