"""Statistics of attention weights agree with the reference."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from corevital.capture.attention_scores import head_statistics, row_maxima, weight_statistics

REFERENCE: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "reference" / "attention.json").read_text()
)
ONE_QUERY = [case for case in REFERENCE if len(case["attention"][0]) == 1]


@pytest.mark.parametrize("case", ONE_QUERY, ids=lambda case: f"{len(case['attention'])} heads")
def test_reference(case: dict[str, Any]) -> None:
    weights = torch.tensor(case["attention"])[:, 0]
    concentration, entropy = weight_statistics(weights)
    normalized = entropy / math.log(max(weights.shape[-1], 2))
    values = head_statistics(entropy, normalized, concentration).tolist()
    mean, lowest, highest, normalized_mean, most, least, collapsed, focused = values
    nats = math.log(2)
    assert mean * nats == pytest.approx(case["entropy_nats_mean"], abs=1e-5)
    assert lowest * nats == pytest.approx(case["entropy_nats_min"], abs=1e-5)
    assert highest * nats == pytest.approx(case["entropy_nats_max"], abs=1e-5)
    assert normalized_mean == pytest.approx(case["entropy_normalized_mean"], abs=1e-5)
    assert most == pytest.approx(case["concentration_max"], abs=1e-6)
    assert least == pytest.approx(case["concentration_min"], abs=1e-6)
    assert collapsed == case["collapsed_head_count"]
    assert focused == case["focused_head_count"]


@pytest.mark.parametrize("keys", [1, 31, 32, 39, 40, 63, 64, 95, 290])
def test_the_largest_of_a_row_is_found_wherever_it_is(keys: int) -> None:
    rows = torch.randn(3, keys, keys)
    rows[:, range(keys), range(keys)] = 9.0
    assert torch.equal(row_maxima(rows), torch.full((3, keys), 9.0))


@pytest.mark.parametrize("keys", [40, 63])
def test_the_largest_of_a_row_with_a_nan_is_nan(keys: int) -> None:
    rows = torch.randn(2, keys)
    rows[0, -1] = rows[1, 0] = torch.nan
    assert row_maxima(rows).isnan().all()
