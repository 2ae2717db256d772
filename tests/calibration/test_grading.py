"""An answer counts when the text says it, and not when it is part of something else."""

from __future__ import annotations

import pytest

from corevital.calibration.grading import is_right, normalized


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Paris", "Paris"),
        ("The capital is PARIS, of course.", "paris"),
        ("It is **Paris**.", "Paris"),
        ("It's 'Paris'.", "Paris"),
        ("“Paris”, they say", '"Paris"'),
        ("Paris's river", "Paris"),
        ("New\n  York", "new york"),
        ("N\u2019Djamena", "N'Djamena"),
        ("Bogota\u0301", "Bogotá"),
        ("1,234,567 of them", "1234567"),
        ("1234 of them", "1,234"),
        ("7 + 5 = 12.", "12"),
        ("about 3.5 km", "3.5"),
        ("it is -5", "-5"),
        ("1.Paris", "Paris"),
        ("(12)", "12"),
        ("in the U.S.", "U.S."),
    ],
)
def test_says_it(text: str, answer: str) -> None:
    assert is_right(text, [answer])


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "Paris"),
        ("Pari", "Paris"),
        ("Parisian", "Paris"),
        ("Paris-based", "Paris"),
        ("non-Paris", "Paris"),
        ("Newark York", "New York"),
        ("120", "12"),
        ("312", "12"),
        ("12.5", "12"),
        ("3.12", "12"),
        ("-12", "12"),
        ("12-fold", "12"),
        ("1,12,3456", "1123456"),
        ("1,234", "234"),
        ("a b", "a.b"),
    ],
)
def test_does_not_say_it(text: str, answer: str) -> None:
    assert not is_right(text, [answer])


def test_one_of_the_answers_is_enough() -> None:
    assert is_right("It is Kyiv.", ["Kiev", "Kyiv"])
    assert not is_right("It is Lviv.", ["Kiev", "Kyiv"])
    assert not is_right("It is Lviv.", [])


@pytest.mark.parametrize("nothing", ["", " ", '"*`"'])
def test_an_answer_without_content_is_an_error(nothing: str) -> None:
    assert normalized(nothing) == ""
    with pytest.raises(ValueError, match="is no answer"):
        is_right("anything", [nothing])
