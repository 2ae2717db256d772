from __future__ import annotations

from benchmarks.markdown import table


def test_columns_are_aligned() -> None:
    assert table(["score", "AUROC"], [["calibrated", "0.9"], ["none", "0.512"]]) == (
        "| score      | AUROC |\n"
        "| ---------- | ----: |\n"
        "| calibrated |   0.9 |\n"
        "| none       | 0.512 |"
    )
