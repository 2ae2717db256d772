from __future__ import annotations

import math

import pytest

from corevital.assess.repetition import repetition_loop
from tests.assess.records import floats

NAN = math.nan


@pytest.mark.parametrize(
    ("cosine", "expected"),
    [
        pytest.param([NAN, 1, 1, 1, 1], True, id="five equal states"),
        pytest.param([NAN, 1, 1, 1], False, id="four equal states"),
        pytest.param([NAN, 0, 1, 1, 1], False, id="four equal states after another"),
        pytest.param([NAN, 0.9996, 0.9996, 0.9996, 0.9996], True, id="just above"),
        pytest.param([NAN, 1, 0.9994, 1, 1], False, id="one just below"),
        pytest.param([NAN, 0, 0, 1, 1, 1, 1], True, id="only the last five states count"),
        pytest.param([NAN, 1, 1, 1, 1, 0], False, id="a loop that ended"),
        pytest.param([NAN, 1, 1, NAN, 1], False, id="a step was not observed"),
        pytest.param([], False, id="no steps"),
    ],
)
def test_five_states_whose_consecutive_cosines_all_exceed_the_threshold(
    cosine: list[float], expected: bool
) -> None:
    assert repetition_loop(floats(cosine), 0.9995) is expected
