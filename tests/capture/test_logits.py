"""Next-token statistics agree with the reference and with their definition."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from corevital.capture import chunk
from corevital.capture import logits as module
from corevital.capture.logits import LogitsReducer, logit_statistics
from corevital.capture.unobservable import Unobservable

REFERENCE: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "reference" / "logits.json").read_text()
)


def tensor(values: list[float | None]) -> torch.Tensor:
    return torch.tensor([float("-inf") if value is None else value for value in values])


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{len(case['logits'])} tokens")
def test_reference(case: dict[str, Any]) -> None:
    logits = tensor(case["logits"])[None]
    entropy, surprisal, margin, mass = logit_statistics(
        logits, torch.tensor([case["token_id"]]), top_k=10
    )[:, 0].tolist()
    assert entropy == pytest.approx(case["entropy_bits"], abs=1e-4)
    assert 2**entropy == pytest.approx(case["perplexity"], rel=1e-4)
    assert surprisal == pytest.approx(case["surprisal_bits"], rel=1e-5, abs=1e-4)
    assert margin == pytest.approx(case["top2_margin"], abs=1e-5)
    assert mass == pytest.approx(case["top10_mass"], abs=1e-5)


@given(
    vocabulary=st.sampled_from([1, 2, 9, 128, 5121, 6000, 50257]),
    scale=st.floats(0.01, 30.0),
    shift=st.floats(-500.0, 500.0),
    top_k=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_any_distribution(
    vocabulary: int, scale: float, shift: float, top_k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, vocabulary, generator=generator) * scale + shift
    tokens = torch.randint(0, vocabulary, (3,), generator=generator)
    log_p = torch.log_softmax(logits.double(), -1)
    p = log_p.exp()
    ranked = p.sort(-1, descending=True).values
    expected = torch.stack(
        (
            -(p * log_p).sum(-1) / np.log(2),
            -log_p[torch.arange(3), tokens] / np.log(2),
            ranked[:, 0] - ranked[:, 1] if vocabulary > 1 else ranked[:, 0],
            ranked[:, :top_k].sum(-1),
        )
    )
    observed = logit_statistics(logits.clone(), tokens, top_k)
    torch.testing.assert_close(observed.double(), expected, rtol=1e-4, atol=2e-3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_logit_that_is_not_finite_makes_every_statistic_nan(bad: float) -> None:
    logits = torch.zeros(1, 20)
    logits[0, 3] = bad
    assert torch.isnan(logit_statistics(logits, torch.tensor([1]), 10)[0]).all()


@pytest.mark.parametrize("token", [-100, 20, 2**40])
def test_what_is_no_token_of_the_vocabulary_has_no_surprisal(token: int) -> None:
    logits = torch.randn(2, 20)
    entropy, surprisal, margin, mass = logit_statistics(logits, torch.tensor([3, token]), 10)
    assert surprisal.isnan().tolist() == [False, True]
    assert torch.stack((entropy, margin, mass)).isfinite().all()


def test_impossible_tokens_have_no_part_in_the_entropy() -> None:
    logits = torch.full((1, 8), float("-inf"))
    logits[0, :4] = 0.0
    entropy, surprisal, _, mass = logit_statistics(logits, torch.tensor([0]), 4)[:, 0].tolist()
    assert (entropy, surprisal, mass) == pytest.approx((2.0, 2.0, 1.0))


def test_steps_reduced_together_equal_steps_reduced_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(7, 2, 1, 6000)
    tokens = torch.randint(0, 300, (7, 2))
    together = LogitsReducer(top_k=10)
    for step in range(7):
        together.add(logits[step])
    together.reduce(tokens)
    alone = LogitsReducer(top_k=10, most_steps=1)
    for step in range(7):
        alone.add(logits[step])
        assert alone.full
        alone.reduce(tokens[step : step + 1])
    torch.testing.assert_close(together.result(), alone.result())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("together", "sizes"), [(1, [1] * 8), (3, [3, 3, 3, 1])])
def test_steps_that_wait_together_are_reduced_a_part_at_a_time(
    together: int, sizes: list[int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them with impossible tokens, which takes twice; the last part is a smaller one."""
    torch.manual_seed(0)
    logits = torch.randn(7, 2, 1, 6000).to(dtype)
    logits[3, 1, 0, 40:250] = -math.inf
    as_given, tokens = logits.clone(), torch.randint(0, 40, (7, 2))
    monkeypatch.setattr(chunk, "_CACHED_BYTES", 4 * 2 * 6000 * together)
    reducer = LogitsReducer(top_k=10)
    for step in range(7):
        reducer.add(logits[step])
        assert not reducer.full
    parts: list[int] = []
    sums = module._sums

    def noted(part: torch.Tensor, scratch: torch.Tensor | None) -> Any:
        parts.append(len(part))
        return sums(part, scratch)

    monkeypatch.setattr(module, "_sums", noted)
    reducer.reduce(tokens)
    assert parts == sizes
    assert torch.equal(logits, as_given), "they are the application's"
    expected = logit_statistics(logits.float().squeeze(2), tokens, 10)
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(reducer.result(), expected)


def test_more_steps_than_are_reduced_together_may_wait() -> None:
    """Several tokens that come with one forward pass, as in assisted decoding."""
    torch.manual_seed(0)
    logits, tokens = torch.randn(7, 2, 1, 50), torch.randint(0, 50, (7, 2))
    waiting, alone = LogitsReducer(top_k=10, most_steps=3), LogitsReducer(top_k=10)
    for step in range(7):
        waiting.add(logits[step])
        assert waiting.full == (step >= 2)
    waiting.reduce(tokens)
    for step in range(7):
        alone.add(logits[step])
        alone.reduce(tokens[step : step + 1])
    torch.testing.assert_close(waiting.result(), alone.result())


def test_logits_that_are_written_to_after_they_were_added_do_not_matter() -> None:
    """As a compiled forward pass writes the next ones to the same memory."""
    torch.manual_seed(0)
    logits, tokens = torch.randn(2, 1, 50), torch.tensor([[3, 4]])
    expected = logit_statistics(logits[:, 0].clone(), tokens[0], 10)
    reducer = LogitsReducer(top_k=10)
    reducer.add(logits)
    logits.zero_()
    reducer.reduce(tokens)
    result = reducer.result()
    assert result is not None
    torch.testing.assert_close(result[:, 0], expected)


def test_another_number_of_sequences_is_not_mixed_with_those_that_wait() -> None:
    reducer = LogitsReducer(top_k=10)
    reducer.add(torch.randn(2, 1, 50))
    with pytest.raises(Unobservable, match="number of sequences"):
        reducer.add(torch.randn(1, 1, 50))


def test_a_step_without_a_token_is_dropped() -> None:
    reducer = LogitsReducer(top_k=10)
    for _ in range(3):
        reducer.add(torch.randn(1, 1, 50))
    reducer.reduce(torch.zeros(2, 1, dtype=torch.long))
    result = reducer.result()
    assert result is not None
    assert result.shape == (4, 2, 1)


def test_half_precision_is_reduced_in_single() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 1, 400, dtype=torch.bfloat16)
    reducer = LogitsReducer(top_k=10)
    reducer.add(logits)
    reducer.reduce(torch.tensor([[5]]))
    expected = logit_statistics(logits[:, 0].float(), torch.tensor([5]), 10)
    result = reducer.result()
    assert result is not None
    torch.testing.assert_close(result[:, 0], expected)
