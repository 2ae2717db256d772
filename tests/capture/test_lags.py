"""Lag cosines equal their definition, however many steps are reduced together."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corevital.capture.lags import LagCosines
from corevital.record import LAGS
from tests.capture.observe import observe
from tests.capture.recomputation import hidden_columns
from tests.models import tiny_model, tiny_prompt

# Half of the distance between neighbouring float16 numbers below 1, and the rounding of float32.
COARSE = 2**-12 + 1e-5


def in_blocks(states: torch.Tensor, *sizes: int) -> torch.Tensor:
    lags = LagCosines()
    return torch.cat([lags.of(block) for block in states.split(list(sizes))])


def expected(states: torch.Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """``[n, B, LAGS]``, one cosine at a time."""
    values = states.double().numpy()
    cosines = np.full((*values.shape[:2], LAGS), np.nan)
    for step, row, lag in np.ndindex(*values.shape[:2], LAGS):
        before = step - lag - 1
        if before >= 0:
            a, b = values[step, row], values[before, row]
            cosines[step, row, lag] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
    return cosines


@pytest.mark.parametrize("sizes", [(100,), (32, 32, 32, 4), (1,) * 100, (3, 90, 7)])
@pytest.mark.parametrize("rows", [1, 3])
def test_every_state_is_compared_with_those_before(rows: int, sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    states = torch.randn(100, rows, 12)
    observed = in_blocks(states, *sizes)
    np.testing.assert_allclose(observed, expected(states), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_state_without_a_direction_has_no_cosine_and_spoils_no_other(bad: float) -> None:
    states = torch.ones(10, 2, 4)
    states[4, 1] = bad
    observed = in_blocks(states, 3, 3, 4)
    unknown = torch.isnan(observed)
    assert unknown[4, 1].all()
    assert torch.equal(unknown[:, 0], torch.isnan(in_blocks(torch.ones(10, 1, 4), 10)[:, 0]))
    assert [bool(unknown[step, 1, step - 5]) for step in range(5, 10)] == [True] * 5
    assert not unknown[9, 1, :4].any()


def test_autocast_does_not_make_them_coarser() -> None:
    torch.manual_seed(0)
    states = torch.randn(20, 1, 64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        observed = in_blocks(states, 20)
    assert torch.equal(observed.nan_to_num(), in_blocks(states, 20).nan_to_num())


def test_no_more_than_the_last_states_are_kept() -> None:
    lags = LagCosines()
    for _ in range(200):
        lags.of(torch.randn(8, 1, 16))
    kept = lags._recent
    assert kept is not None
    assert kept.untyped_storage().nbytes() == (LAGS + 8) * 16 * 4


@pytest.mark.parametrize("mode", ["full", "summary", "on_risk"])
def test_every_sequence_of_a_padded_batch_in_every_mode(mode: str) -> None:
    model = tiny_model("llama")
    inputs = tiny_prompt(batch=2)
    mask = torch.ones_like(inputs)
    mask[1, :5] = 0
    arguments = {
        "inputs": inputs,
        "attention_mask": mask,
        "do_sample": False,
        "max_new_tokens": 100,
        "min_new_tokens": 100,
    }
    _, records = observe(model, {"capture": mode}, **arguments)
    outputs = model.generate(**arguments, return_dict_in_generate=True, output_hidden_states=True)
    for row, record in enumerate(records):
        assert record.hidden is not None
        assert record.hidden.lag_cosine is not None
        assert record.hidden.lag_cosine.dtype == np.float16
        recomputed = hidden_columns(outputs, row, 100)["lag_cosine"]
        np.testing.assert_allclose(record.hidden.lag_cosine, recomputed, rtol=0, atol=COARSE)
