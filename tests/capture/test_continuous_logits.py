"""Rows of logits of a batch are reduced as those of a generation are, in bounded memory."""

from __future__ import annotations

import pytest
import torch

from corevital.capture import continuous_logits
from corevital.capture.continuous_logits import BatchLogits
from corevital.capture.logits import logit_statistics

ROWS, VOCABULARY, TOP_K = 5, 300, 10


def example(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(rows)
    logits = 4 * torch.randn(rows, VOCABULARY, generator=generator)
    return logits.to(dtype), torch.randint(VOCABULARY, (rows,), generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_row_has_the_statistics_of_its_token(dtype: torch.dtype) -> None:
    logits, tokens = example(dtype=dtype)
    original = logits.clone()

    reduced = BatchLogits(TOP_K).reduce(logits, tokens.int()).array()

    expected = logit_statistics(original.float(), tokens, TOP_K).numpy()
    assert reduced == pytest.approx(expected, abs=1e-6)
    assert torch.equal(logits, original)


def test_many_rows_are_reduced_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, tokens = example()
    whole = BatchLogits(TOP_K).reduce(logits, tokens).array()
    monkeypatch.setattr(continuous_logits, "_BUFFER_BYTES", 2 * 4 * VOCABULARY)

    parts = BatchLogits(TOP_K).reduce(logits, tokens).array()

    assert parts.shape == (4, ROWS)
    assert parts == pytest.approx(whole, abs=1e-6)


def test_batches_of_any_size_follow_each_other() -> None:
    reducer = BatchLogits(TOP_K)
    for rows in (1, 4, 2, 7):
        logits, tokens = example(rows)
        first = reducer.reduce(logits, tokens)
        kept = first.array().copy()
        reducer.reduce(*example(rows))
        assert first.array() == pytest.approx(kept)
