"""Statistics of an encoder's states over its positions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corevital.capture import position_statistics
from corevital.capture.position_statistics import PositionStatistics


@pytest.mark.parametrize("part", [1, 3, 100], ids="{} positions at a time".format)
def test_padding_does_not_count_however_many_positions_are_reduced_at_a_time(
    part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    states = torch.randn(2, 7, 16)
    monkeypatch.setattr(position_statistics, "BUFFER_BYTES", 4 * 2 * 16 * part)
    valid = torch.ones(2, 7, dtype=torch.bool)
    valid[0, :2] = False
    states[0, 0] = torch.nan
    statistics = PositionStatistics()
    statistics.observe(3, states, valid)
    for row in range(2):
        seen = states[row][valid[row]].double().numpy()
        expected = (
            seen.mean(),
            seen.std(-1, ddof=1).mean(),
            np.linalg.norm(seen, axis=-1).mean(),
            np.abs(seen).max(),
            0.0,
            0.0,
        )
        np.testing.assert_allclose(statistics.by_layer[3][:, row], expected, rtol=1e-5, atol=1e-6)


def test_nan_and_what_is_clamped_are_noted() -> None:
    states = torch.ones(1, 4, 2)
    states[0, 1, 0] = 1e8
    states[0, 2, 1] = torch.inf
    statistics = PositionStatistics()
    statistics.observe(0, states, torch.ones(1, 4, dtype=torch.bool))
    *_, max_abs, clipped, non_finite = statistics.by_layer[0][:, 0].tolist()
    assert (max_abs, clipped, non_finite) == (1e6, 0.25, 1.0)
