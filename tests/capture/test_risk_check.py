"""Whether a run has become risky is told from values that have reached the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from corevital.capture import risk_check
from corevital.capture.risk_check import RiskCheck
from corevital.record import Floats, LogitColumns

STEPS, BATCH = 5, 2


class Arriving:
    """A copy to the host that arrives when it is told to."""

    on_time = True

    def __init__(self, tensor: torch.Tensor) -> None:
        self._array = tensor.numpy()

    @property
    def arrived(self) -> bool:
        return type(self).on_time

    def array(self) -> Any:
        return self._array


@pytest.fixture
def arriving(monkeypatch: pytest.MonkeyPatch) -> type[Arriving]:
    monkeypatch.setattr(Arriving, "on_time", True)
    monkeypatch.setattr(risk_check, "PendingCopy", Arriving)
    return Arriving


def values(of: float) -> tuple[torch.Tensor, list[torch.Tensor], np.ndarray[Any, Any]]:
    """Columns and cosines that all are the sequence's number above ``of``."""
    row = torch.arange(BATCH) + of
    columns, cosines = row.expand(4, STEPS, BATCH), row.expand(STEPS, BATCH)
    return columns, [cosines[:3], cosines[3:]], np.arange(BATCH)


def test_each_sequence_is_asked_about_with_its_own_values() -> None:
    asked: list[tuple[Floats, Floats]] = []

    def never(columns: LogitColumns, cosines: Floats) -> bool:
        asked.append((columns.margin, cosines))
        return False

    assert not RiskCheck(never).holds(*values(of=10))
    for row, (margins, cosines) in enumerate(asked):
        assert margins.tolist() == cosines.tolist() == [10 + row] * STEPS
    assert len(asked) == BATCH


def test_several_sequences_share_one_state() -> None:
    asked: list[float] = []

    def never(columns: LogitColumns, cosines: Floats) -> bool:
        asked.append(float(cosines[0]))
        return False

    columns, cosines, _ = values(of=10)
    assert not RiskCheck(never).holds(columns, cosines, np.array([1, 1]))
    assert asked == [11, 11]


def test_one_risky_sequence_is_enough() -> None:
    check = RiskCheck(lambda columns, cosines: bool(cosines[0] == 11))
    assert check.holds(*values(of=10))


def test_without_a_state_nothing_is_asked() -> None:
    def broken(columns: LogitColumns, cosines: Floats) -> bool:
        raise AssertionError

    columns, _, states = values(of=0)
    assert not RiskCheck(broken).holds(columns, [], states)


def test_values_on_their_way_are_asked_about_the_next_time(arriving: type[Arriving]) -> None:
    asked: list[float] = []

    def risky(columns: LogitColumns, cosines: Floats) -> bool:
        asked.append(float(cosines[0]))
        return True

    check = RiskCheck(risky)
    arriving.on_time = False
    assert not check.holds(*values(of=10))
    assert asked == []
    arriving.on_time = True
    assert check.holds(*values(of=20))
    assert asked == [10]
