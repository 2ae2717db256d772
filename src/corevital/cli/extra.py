"""What only some commands need is not installed with CoreVital."""

from __future__ import annotations

from importlib import import_module

from corevital.cli.errors import CommandError


def require(extra: str, *modules: str) -> None:
    """Check that the ``modules`` that ``extra`` installs can be imported.

    Raises:
        CommandError: one cannot; the message says what to install.
    """
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            raise CommandError(
                f'this command needs more ({error}): pip install "corevital[{extra}]"'
            ) from error
