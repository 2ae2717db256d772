"""Texts that repeat themselves and are right to."""

from __future__ import annotations

_NUMBERED = range(1, 13)
_NAMES = ("Alice", "Bob", "Carol", "Dave", "Erin", "Frank", "Grace", "Heidi")
_ROUND = (
    "Row, row, row your boat,\nGently down the stream.\n"
    "Merrily, merrily, merrily, merrily,\nLife is but a dream.\n\n"
)
_REFRAIN = (
    "We are the children of the morning,\nWe are the singers of the sun,\n"
    "And we will dance until the river\nAnd the long road are one.\n\n"
)

# Not even a model for which all states are alike may take these for loops.
NO_LOOPS = {
    "shopping list": "\n".join(f"- {thing}" for thing in ["milk", "eggs", "bread", "tea"] * 3),
    "numbers in lines": "\n".join(map(str, range(1, 101))),
    "numbers with commas": ", ".join(map(str, range(1, 120))),
    "multiplication table": "\n".join(f"{n} x 7 = {7 * n}" for n in range(1, 40)),
    "numbers with leading zeros": "\n".join(f"{n:04d}" for n in range(1, 60)),
    "array of zeros": f"weights = [{', '.join('0' * 20)}]\nbias = 0\n",
    "bytes": f"uint8_t key[] = {{{', '.join(['0x00'] * 16)}}};",
    "hexadecimal dump": "\n".join(f"{n:02x} " + "00 " * 15 for n in range(10)),
    "identity matrix": "\n".join(
        " ".join("01"[row == col] for col in range(9)) for row in range(9)
    ),
    "rule of dashes": f"Section one\n{'- ' * 40}\nThe text begins.\n{'=' * 80}\nThe end.",
    "table of contents": "\n".join(f"{n}. Chapter {'. ' * 30}{7 * n}" for n in _NUMBERED),
    "head of a wide table": "| column |" * 12 + "\n" + "|" + " --- |" * 12,
    "table of equal cells": "\n".join(f"| {name} | Yes | Yes | Yes |" for name in _NAMES),
    "empty table": "| Name | Phone | Email |\n|---|---|---|\n" + "|  |  |  |\n" * 8,
    "empty chess board": ". . . . . . . .\n" * 8,
    "constant column": "\n".join(f"2024-01-{day:02d},0" for day in range(1, 29)),
    "JSON of equal keys": "[\n"
    + ",\n".join(f'  {{\n    "name": "{name}",\n    "active": true\n  }}' for name in _NAMES)
    + "\n]",
    "nested code": "".join(f"{'    ' * depth}if (a) {{\n" for depth in range(8))
    + "".join(f"{'    ' * depth}}}\n" for depth in range(8, 0, -1)),
    "closing tags": "<div>\n" * 10 + "text\n" + "</div>\n" * 10,
    "placeholders": '    <li><a href="#">Link</a></li>\n' * 6,
    "getters": "\n".join(
        f"    def get_{name.lower()}(self):\n        return self._{name.lower()}\n"
        for name in _NAMES
    ),
    "assertions": "\n".join(f"    assert add({n}, {n}) == {2 * n}" for n in _NUMBERED),
    "litany": "\n".join(f"Saint {name}, pray for us." for name in _NAMES * 2),
    "clauses": "\n".join(
        f"{n}. The Tenant shall not, without the prior written consent of the Landlord, do act {n}."
        for n in _NUMBERED
    ),
    "bottles": "\n".join(
        f"{n} bottles of beer on the wall, {n} bottles of beer.\nTake one down and pass it around."
        for n in range(19, 9, -1)
    ),
    "laughter": "Ha ha ha ha ha ha ha ha! Then he stopped and said: no, no, no, no, never again.",
    "third": f"1/3 = 0.{'3' * 32}, 1/7 = 0.{'142857' * 5} and 2/3 = 0.{'6' * 20}7.",
}

# Long enough for a loop: it takes the states to know better.
THREE_COPIES = {
    "round": 3 * _ROUND + "Sing it again.",
    "chorus": 3 * _REFRAIN + "Sing it again.",
}
