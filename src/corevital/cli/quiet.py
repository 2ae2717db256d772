"""Keeps the libraries' own progress bars, warnings and logs off the terminal."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# They log every attempt; what became of the telemetry is said once, at the end.
_EXPORT_LOGGERS: Final = ("opentelemetry.exporter", "opentelemetry.sdk")


@contextmanager
def quiet_libraries(*, show_downloads: bool) -> Iterator[None]:
    """Silence what is no error inside the block, but for the progress of downloads if wanted.

    Nothing that matters is lost: failures are raised, and weights that a checkpoint lacks are
    reported by ``load_model``.
    """
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )
    from transformers.utils import logging as transformers_logging

    downloads_shown = not are_progress_bars_disabled()
    bars_shown = transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    hub_logger = logging.getLogger("huggingface_hub")
    hub_level = hub_logger.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    if show_downloads and downloads_shown:
        enable_progress_bars()
    hub_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), _unheard_exporters(), _own_warnings_on_one_line():
            warnings.simplefilter("ignore")
            yield
    finally:
        hub_logger.setLevel(hub_level)
        transformers_logging.set_verbosity(verbosity)
        if bars_shown:
            transformers_logging.enable_progress_bar()
        (enable_progress_bars if downloads_shown else disable_progress_bars)()


@contextmanager
def _unheard_exporters() -> Iterator[None]:
    """Keep the exporters' logs from the handlers above them inside the block."""
    loggers = [logging.getLogger(name) for name in _EXPORT_LOGGERS]
    propagated = [logger.propagate for logger in loggers]
    silent = logging.NullHandler()
    for logger in loggers:
        logger.propagate = False
        logger.addHandler(silent)
    try:
        yield
    finally:
        for logger, propagate in zip(loggers, propagated, strict=True):
            logger.removeHandler(silent)
            logger.propagate = propagate


@contextmanager
def _own_warnings_on_one_line() -> Iterator[None]:
    """Leave out the tracebacks of what CoreVital logs of its own failures inside the block."""
    logger = logging.getLogger("corevital")
    propagated = logger.propagate
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagated


class _OneLine(logging.Formatter):
    """The message alone."""

    def format(self, record: logging.LogRecord) -> str:
        return f"corevital: {record.levelname.lower()}: {record.getMessage()}"
