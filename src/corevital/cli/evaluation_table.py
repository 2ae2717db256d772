"""How well scores tell failures, as a table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from rich import box
from rich.table import Table

from corevital.calibration.evaluate import HEURISTIC, UNCALIBRATED
from corevital.calibration.risk import Evaluation, Quality

_NAMES: Final = {HEURISTIC: "published heuristic", UNCALIBRATED: "uncalibrated default"}


def score_name(name: str) -> str:
    """What a score that needs no calibration is called; estimators have their own names."""
    return _NAMES.get(name, name)


def evaluation_table(evaluation: Evaluation, *, plain: bool) -> Table:
    """One row for each score: the calibrated ones first, then the others, the best of them first.

    ``plain`` leaves out lines and styles.
    """
    table = Table(box=None if plain else box.SIMPLE, pad_edge=False)
    table.add_column("Score")
    for name in ("AUROC", "ECE", "Brier"):
        table.add_column(name, justify="right")
    for place, (name, quality) in enumerate(_rows(evaluation)):
        style = None if plain or place else "bold"
        table.add_row(name, *map(_number, (quality.auroc, quality.ece, quality.brier)), style=style)
    return table


def _rows(evaluation: Evaluation) -> Iterator[tuple[str, Quality]]:
    for place, (groups, quality) in enumerate(evaluation.calibrated.items()):
        words = groups.replace("+", ", ").replace("_", " ")
        yield f"calibrated, from {words}" if place else "calibrated", quality
    others = sorted(evaluation.others.items(), key=lambda other: other[1].auroc, reverse=True)
    for name, quality in others:
        yield score_name(name), quality


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
