"""What the libraries may say while a model is loaded and run, and what they may not."""

from __future__ import annotations

import logging
import warnings

import pytest
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging

from corevital.cli.quiet import quiet_libraries


def test_their_warnings_are_silent_and_their_errors_are_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with quiet_libraries(show_downloads=False):
        warnings.warn("deprecated", stacklevel=1)
        logging.getLogger("huggingface_hub.file_download").warning("retrying")
        logging.getLogger("opentelemetry.exporter.otlp").error("will be told at the end")
        transformers_logging.get_logger("transformers.modeling_utils").warning("unusual")
        transformers_logging.get_logger("transformers.modeling_utils").error("broken")

    assert caplog.messages == ["broken"]


def test_a_failure_of_our_own_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_libraries(show_downloads=False):
        try:
            raise ValueError("inside")
        except ValueError:
            logging.getLogger("corevital.capture.observed_signals").warning(
                "no attention", exc_info=True
            )

    assert capsys.readouterr() == ("", "corevital: warning: no attention\n")


@pytest.mark.parametrize("show_downloads", [True, False])
def test_downloads_may_show_their_progress(show_downloads: bool) -> None:
    with quiet_libraries(show_downloads=show_downloads):
        assert are_progress_bars_disabled() is not show_downloads
        assert not transformers_logging.is_progress_bar_enabled()


def test_afterwards_everything_is_as_it_was() -> None:
    def state() -> list[object]:
        names = ("huggingface_hub", "corevital", "opentelemetry.exporter", "opentelemetry.sdk")
        loggers = [logging.getLogger(name) for name in names]
        return [
            are_progress_bars_disabled(),
            transformers_logging.is_progress_bar_enabled(),
            transformers_logging.get_verbosity(),
            list(warnings.filters),
            [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers],
        ]

    before = state()
    with quiet_libraries(show_downloads=True):
        assert state() != before

    assert state() == before
