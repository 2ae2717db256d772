"""Intervals of shares, against values published with the method and against their own meaning."""

from __future__ import annotations

import numpy as np
import pytest

from corevital.calibration.wilson import wilson_interval


@pytest.mark.parametrize(
    ("found", "count", "low", "high"),
    [
        # Newcombe 1998, doi:10.1002/(SICI)1097-0258(19980430)17:8<857::AID-SIM777>3.0.CO;2-E,
        # table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(found: int, count: int, low: float, high: float) -> None:
    ends = wilson_interval(np.array([found / count]), np.array([count]))

    assert np.concatenate(ends) == pytest.approx([low, high], abs=5e-5)


def test_holds_the_share_and_stays_in_range() -> None:
    count = np.repeat([1, 2, 90, 10_000], 5)
    share = np.tile([0.0, 0.25, 0.5, 0.75, 1.0], 4)
    low, high = wilson_interval(share, count)

    assert (low >= 0.0).all()
    assert (high <= 1.0).all()
    assert (low <= share + 1e-12).all()
    assert (share <= high + 1e-12).all()
    assert (high - low > 0.0).all()


def test_more_runs_say_more() -> None:
    low, high = wilson_interval(np.full(3, 0.3), np.array([10, 100, 1000]))

    assert (np.diff(high - low) < 0.0).all()
