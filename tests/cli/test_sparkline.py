"""Numbers as block characters."""

from __future__ import annotations

import math

import pytest

from corevital.cli.sparkline import ASCII_BLOCKS, condensed, mark


def test_the_scale_is_divided_evenly_among_the_blocks() -> None:
    assert "".join(mark(value, 8.0) for value in range(8)) == "▁▂▃▄▅▆▇█"


@pytest.mark.parametrize(("value", "drawn"), [(-1.0, "▁"), (4.0, "█"), (9.0, "█")])
def test_what_is_outside_the_scale_is_drawn_at_its_end(value: float, drawn: str) -> None:
    assert mark(value, 4.0) == drawn


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_has_its_own_mark(value: float) -> None:
    assert mark(value, 4.0) == "!"


def test_a_terminal_without_blocks_gets_other_characters() -> None:
    assert "".join(mark(value, 8.0, ASCII_BLOCKS) for value in range(8)) == ASCII_BLOCKS
    assert ASCII_BLOCKS.isascii()


def test_a_short_series_stays_as_it_is() -> None:
    assert condensed([1.0, 2.0, 3.0], 3) == ([1.0, 2.0, 3.0], 1)


def test_a_long_series_keeps_the_peaks() -> None:
    assert condensed([1.0, 5.0, 2.0, 3.0, 4.0], 3) == ([5.0, 3.0, 4.0], 2)


def test_a_long_series_keeps_what_is_no_number() -> None:
    values, size = condensed([1.0, math.nan, 9.0, 2.0], 2)

    assert size == 2
    assert math.isnan(values[0])
    assert values[1] == 9.0


def test_an_empty_series_is_an_empty_line() -> None:
    assert condensed([], 10) == ([], 1)
