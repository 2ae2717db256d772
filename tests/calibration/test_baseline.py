"""The file of a baseline: complete, small, and read again as it was written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from corevital.calibration.baseline import Baseline, Distribution
from corevital.calibration.sketch import SIZE
from tests.calibration.runs import MODEL, baseline_of, healthy_baseline, healthy_record

BASELINE = healthy_baseline(12, steps=6)


def written() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(BASELINE.model_dump_json())
    return value


def test_is_read_as_it_was_written() -> None:
    assert Baseline.model_validate_json(BASELINE.model_dump_json()) == BASELINE
    assert Baseline.model_validate(written()) == BASELINE


def test_says_what_it_is_and_where_it_comes_from() -> None:
    value = written()

    assert (value["kind"], value["version"]) == ("baseline", 1)
    assert value["model"]["name"] == MODEL.name
    assert value["model"]["hidden_size"] == MODEL.hidden_size
    assert (value["runs"], value["steps"]) == (12, 72)
    assert value["capture"] == {"mode": "full", "top_k": 10}
    assert value["conditions"]["max_new_tokens"] == 24
    assert value["created_with"] == {"corevital": "0.1.0"}


def test_sketches_survive() -> None:
    for each in BASELINE.distributions:
        again = Distribution.of(each.key, each.every_count(), each.spread)
        assert again == each


def test_is_small_for_a_large_model_and_many_runs() -> None:
    layers = 32
    few = baseline_of([healthy_record(seed, 64, layers) for seed in range(10)])
    many = baseline_of([healthy_record(seed, 64, layers) for seed in range(80)])

    assert len(many.model_dump_json()) < 200_000
    assert len(many.model_dump_json()) < 2 * len(few.model_dump_json())


def test_cannot_be_larger_than_its_buckets_allow() -> None:
    # Every bucket in use, with counts of eight digits: 32 layers stay below one megabyte even if
    # their values spread over six orders of magnitude.
    buckets = SIZE // 2
    distribution = BASELINE.distributions[0].model_copy(update={"counts": [12_345_678] * buckets})

    assert len(distribution.model_dump_json()) * (3 + 3 * 32) < 1_000_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "risk"}, "kind"),
        ({"version": 2}, "version"),
        ({"runs": 0}, "runs"),
        ({"extra": 1}, "extra"),
        ({"distributions": []}, "distributions"),
        ({"lengths": [2, 1, 4]}, "lengths must ascend"),
        ({"lengths": [1, 2, 4, 8]}, "a spread for each length"),
        ({"limits": [1.0]}, "a limit for each length"),
        ({"limits": [0.0, 1.0, 1.0]}, "limits"),
        ({"distributions": written()["distributions"] * 2}, "there twice"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Baseline.model_validate(written() | change)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantity": "temperature"}, "quantity"),
        ({"first": SIZE - 1, "counts": [1, 1]}, "more buckets than there are"),
        ({"first": -1}, "first"),
        ({"counts": [-1]}, "counts"),
        ({"counts": []}, "counts"),
        ({"counts": [0, 0]}, "counts nothing"),
        ({"spread": [1.0, 1.0, float("nan")]}, "spread"),
    ],
)
def test_distributions_that_are_none_are_refused(change: dict[str, Any], said: str) -> None:
    value = written()
    value["distributions"][0] |= change

    with pytest.raises(ValidationError, match=said):
        Baseline.model_validate(value)
