from __future__ import annotations

import pytest

from corevital.assess.wording import counted, decimal, listed, printable, shortened


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain words", "plain words"),
        ("naïve 日本 🙂", "naïve 日本 🙂"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\u202eevil", r"\u202eevil"),
        ("\ud800", r"\ud800"),
    ],
)
def test_printable_text_is_on_one_line(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_long_text_is_shortened() -> None:
    assert shortened("123456789", 9) == "123456789"
    assert shortened("1234567890", 9) == "123456..."


@pytest.mark.parametrize(("number", "words"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps")])
def test_a_number_and_its_noun(number: int, words: str) -> None:
    assert counted(number, "step") == words


@pytest.mark.parametrize(
    ("parts", "words"),
    [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")],
)
def test_a_list(parts: list[str], words: str) -> None:
    assert listed(parts) == words


def test_decimals_stay_short() -> None:
    assert decimal(3.14159) == "3.14"
    assert decimal(-3e38) == "-3e+38"
