"""Hidden-state statistics agree with the reference and with their definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from corevital.capture import chunk, hidden
from corevital.capture.hidden import HiddenReducer, hidden_statistics

FOLDER = Path(__file__).parents[1] / "reference"
REFERENCE: list[dict[str, Any]] = json.loads((FOLDER / "hidden.json").read_text())
ONE_TOKEN = [case for case in REFERENCE if len(case["hidden"]) == 1]


@pytest.mark.parametrize("case", ONE_TOKEN, ids=["plain", "clipped"])
def test_reference(case: dict[str, Any]) -> None:
    values = hidden_statistics(torch.tensor(case["hidden"]))[:, 0].tolist()
    mean, std, norm, max_abs, clip_fraction, non_finite = values
    assert mean == pytest.approx(case["mean"], rel=1e-5)
    assert std == pytest.approx(case["std"], rel=1e-5)
    assert norm == pytest.approx(case["l2_norm_mean"], rel=1e-5)
    assert max_abs == pytest.approx(case["max_abs"], rel=1e-6)
    assert clip_fraction == pytest.approx(case["clip_fraction"] or 0.0)
    assert (clip_fraction > 0) == case["clipped"]
    assert non_finite == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_state_that_is_not_finite_is_marked_and_no_other(bad: float) -> None:
    states = torch.randn(3, 16)
    states[1, 4] = bad
    assert hidden_statistics(states)[5].tolist() == [0.0, 1.0, 0.0]


def test_repetition_reference_cosines() -> None:
    for case in json.loads((FOLDER / "repetition.json").read_text()):
        vectors = torch.tensor(case["last_layer_vectors"])
        reducer = HiddenReducer(most_steps=2)
        for step, vector in enumerate(vectors):
            reducer.add(step, {0: vector.view(1, 1, -1)})
        reducer.reduce()
        observed = torch.cat(reducer.last_layer_cosines)[:, 0]
        assert torch.isnan(observed[0])
        expected = torch.cosine_similarity(vectors[1:], vectors[:-1])
        torch.testing.assert_close(observed[1:], expected)


def test_steps_reduced_together_equal_steps_reduced_alone() -> None:
    torch.manual_seed(0)
    states = torch.randn(9, 3, 2, 1, 8)
    together, alone = HiddenReducer(), HiddenReducer(most_steps=1)
    for step in range(9):
        for reducer in (together, alone):
            reducer.add(step, {layer: states[step, layer] for layer in range(3)})
    together.reduce()
    assert len(together.chunks) == 1
    assert len(alone.chunks) == 9
    separate = torch.cat([chunk.statistics for chunk in alone.chunks], dim=1)
    torch.testing.assert_close(together.chunks[0].statistics, separate)
    torch.testing.assert_close(
        torch.cat(alone.last_layer_cosines), together.last_layer_cosines[0], equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_that_wait_together_are_reduced_a_part_at_a_time(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last part is smaller than those before."""
    torch.manual_seed(0)
    states = torch.randn(5, 3, 2, 1, 8).to(dtype)
    monkeypatch.setattr(chunk, "_CACHED_BYTES", 2 * states[0].numel() * 4)
    parts: list[int] = []

    def noted(part: torch.Tensor, scratch: torch.Tensor) -> torch.Tensor:
        parts.append(len(part))
        return hidden_statistics(part, scratch)

    monkeypatch.setattr(hidden, "hidden_statistics", noted)
    reducer = HiddenReducer()
    for step in range(5):
        reducer.add(step, {layer: states[step, layer] for layer in range(3)})
    reducer.reduce()
    (reduced,) = reducer.chunks
    assert reduced.steps == tuple(range(5))
    assert parts == [2, 2, 1]
    expected = hidden_statistics(states.float().squeeze(-2))
    torch.testing.assert_close(reduced.statistics, expected)


def test_a_change_of_the_observed_layers_starts_a_new_chunk() -> None:
    reducer = HiddenReducer()
    reducer.add(0, {2: torch.ones(1, 1, 4)})
    reducer.add(1, {layer: torch.ones(1, 1, 4) for layer in range(3)})
    reducer.reduce()
    assert [chunk.positions for chunk in reducer.chunks] == [(2,), (0, 1, 2)]
    assert torch.cat(reducer.last_layer_cosines)[1].item() == pytest.approx(1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_models_own_states_are_let_go_at_once(dtype: torch.dtype) -> None:
    reducer, state = HiddenReducer(), torch.randn(2, 1, 8).to(dtype)
    storage = StorageWeakRef(state.untyped_storage())
    reducer.add(0, {0: state})
    del state
    assert storage.expired()
    reducer.reduce()
    assert len(reducer.chunks) == 1
