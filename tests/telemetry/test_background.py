"""Work is done in order, in another thread, and all of it before the thread ends."""

from __future__ import annotations

import functools
import logging
import threading

import pytest

from corevital.telemetry.background import Background

SECONDS = 30


def test_everything_is_done_in_order_in_a_thread_that_ends() -> None:
    background = Background()
    done: list[tuple[int, threading.Thread]] = []

    def work(number: int) -> None:
        done.append((number, threading.current_thread()))

    for number in range(5):
        assert background.submit(functools.partial(work, number))
    background.close()
    background.join(SECONDS)

    assert [number for number, _ in done] == list(range(5))
    (thread,) = {thread for _, thread in done}
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_nothing_is_taken_once_it_is_closed() -> None:
    background = Background()
    background.close()
    assert not background.submit(pytest.fail)
    background.join(SECONDS)


def test_what_fails_is_logged_and_the_rest_is_done(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> None:
        raise KeyError("gone")

    background = Background()
    done = threading.Event()
    with caplog.at_level(logging.ERROR):
        background.submit(fail)
        background.submit(done.set)
        background.close()
        background.join(SECONDS)

    assert done.is_set()
    assert "KeyError: 'gone'" in caplog.text
