"""The tables say what the scores are."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.risk_quality import Compared, report
from corevital.calibration.evaluate import HEURISTIC, HeldOut

RUNS = 40


@pytest.fixture
def compared() -> Compared:
    """Two kinds: `left` tells failures of the one, `right` those of the other."""
    failed = np.arange(2 * RUNS) % 2 == 0
    kinds = np.repeat(["sums", "words"], RUNS)
    random = np.random.default_rng(0)
    noise = random.random(2 * RUNS)
    said = np.where(failed, 0.8, 0.2) + 0.1 * noise
    others = {
        HEURISTIC: np.where(failed, 0.0, 1.0),
        "left": np.where(kinds == "sums", failed, noise),
        "right": np.where(kinds == "words", failed, noise),
    }
    scores = HeldOut({"logits": said}, others)
    repeated = (HeldOut({"logits": said}, {}), HeldOut({"logits": 1.0 - said}, {}))
    return Compared(kinds, failed, scores, HeldOut({"logits": 1.0 - said}, others), repeated)


def rows(compared: Compared, heading: str, table: int = 0) -> dict[str, list[str]]:
    """The cells of a table under ``heading``, by the first of each row."""
    [part] = [part for part in "\n".join(report(compared)).split("\n## ") if heading in part[:40]]
    tables = [block for block in part.split("\n\n") if "|" in block]
    lines = [line for line in tables[table].splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: rest for first, *rest in cells}


def test_labels_are_counted(compared: Compared) -> None:
    found = rows(compared, "Labels")

    assert found["sums"] == ["40", "20", "50%"]
    assert found["pooled"] == ["80", "40", "50%"]


def test_each_score_is_ranked_pooled_and_by_kind(compared: Compared) -> None:
    found = rows(compared, "Held-out prompts")

    assert found["score"] == ["pooled", "95 %", "sums", "words", "ECE", "Brier"]
    assert found["calibrated: logits"][:4] == ["1.000", "1.000 to 1.000", "1.000", "1.000"]
    assert found["left"][2] == "1.000"
    assert found["right"][3] == "1.000"
    assert found["left"][-2:] == ["", ""]
    # A score that is always wrong, read as a probability.
    assert found[HEURISTIC] == ["0.000", "0.000 to 0.000", "0.000", "0.000", "1.000", "1.000"]


def test_the_best_estimator_is_chosen_on_the_kind_itself_or_on_the_others(
    compared: Compared,
) -> None:
    margins = rows(compared, "Held-out prompts", table=1)
    held_out = rows(compared, "Held-out kinds")

    assert margins["sums"][2] == "left 1.000"
    assert margins["words"][2:4] == ["right 1.000", "+0.000"]
    assert held_out["sums"][0] == "0.000"
    assert held_out["sums"][2].startswith("right 0.")
    assert held_out["sums"][3] == "left 1.000"


def test_other_folds_give_other_figures(compared: Compared) -> None:
    found = rows(compared, "Calibration")["calibrated: logits"]

    assert found[:2] == ["0.500", "0.000 to 1.000"]


def test_the_extremes_and_the_error_of_a_perfect_score_are_told(compared: Compared) -> None:
    text = "\n".join(report(compared))
    said = compared.by_prompt.fullest

    assert f"smallest score of a run is {said.min():.4f}, the largest {said.max():.4f}" in text
    assert "A score that told each run's true chance would show 0." in text
