"""Scores are compared line by line: calibrated ones first, then the others by how they rank."""

from __future__ import annotations

import io

from rich.console import Console

from corevital.calibration.risk import Evaluation, Quality
from corevital.cli.evaluation_table import evaluation_table

EVALUATION = Evaluation(
    folds=10,
    calibrated={
        "logits+last_layer+hidden": Quality(auroc=0.9041, ece=0.027, brier=0.125),
        "logits": Quality(auroc=0.86, ece=0.03, brier=0.15),
    },
    others={
        "heuristic": Quality(auroc=0.515, ece=0.29, brier=0.3),
        "uncalibrated": Quality(auroc=0.7, ece=0.2, brier=0.2),
        "rauq": Quality(auroc=0.706),
    },
)


def printed(*, plain: bool, terminal: bool) -> str:
    console = Console(file=io.StringIO(), width=80, force_terminal=terminal, color_system=None)
    console.print(evaluation_table(EVALUATION, plain=plain))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_each_score_has_a_line() -> None:
    assert [line.rstrip() for line in printed(plain=True, terminal=False).splitlines()] == [
        "Score                    AUROC    ECE  Brier",
        "calibrated               0.904  0.027  0.125",
        "calibrated, from logits  0.860  0.030  0.150",
        "rauq                     0.706",
        "uncalibrated default     0.700  0.200  0.200",
        "published heuristic      0.515  0.290  0.300",
    ]


def test_plain_is_ascii_and_a_terminal_gets_a_line_under_the_head() -> None:
    assert printed(plain=True, terminal=False).isascii()
    assert "\N{BOX DRAWINGS LIGHT HORIZONTAL}" in printed(plain=False, terminal=True)
