"""Grades a generated text by answers that count as right."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Final

_IGNORED: Final = re.compile(r"[\"“”„«»*`]")
_APOSTROPHES: Final = re.compile(r"[\u2018\u2019]")
_THOUSANDS: Final = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_SPACE: Final = re.compile(r"\s+")


def is_right(text: str, answers: Iterable[str]) -> bool:
    """Whether ``text`` holds one of the accepted ``answers``, as words or numbers of their own.

    An answer does not count inside another word, number or decimal, or as part of a word with a
    hyphen: 5 is not in "15", "-5", "0.5" or "5-fold". Case, quotation marks, asterisks, backticks,
    thousands separators and the kind of white space make no difference.

    Raises:
        ValueError: an answer has nothing but what makes no difference.
    """
    said = normalized(text)
    return any(_alone(answer).search(said) is not None for answer in answers)


def normalized(text: str) -> str:
    """``text`` without what makes no difference; empty when there is nothing else."""
    text = unicodedata.normalize("NFC", text).casefold()
    text = _APOSTROPHES.sub("'", _IGNORED.sub("", text))
    return _SPACE.sub(" ", _THOUSANDS.sub("", text)).strip()


def _alone(answer: str) -> re.Pattern[str]:
    wanted = normalized(answer)
    if not wanted:
        raise ValueError(f"{answer!r} is no answer")
    return re.compile(rf"(?<![\w-])(?<!\d\.(?=\d)){re.escape(wanted)}(?![\w-]|\.\d)")
