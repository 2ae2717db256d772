"""Statistics of attention weights agree with the reference."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from corevital.capture.attention_scores import head_statistics, weight_statistics

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
