"""Statistics over all queries of an attention, a bounded part of its weights at a time."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from corevital.capture.attention import AttentionCall
from corevital.capture.attention_rows import RowStatistics
from corevital.capture.masks import visible_positions
from corevital.capture.prompt import CHUNK_BYTES, PromptAttention
from corevital.capture.unobservable import Unobservable

HEADS, LENGTH, WIDTH = 4, 420, 8


class Watched(RowStatistics):
    """Notes the largest part that it was shown."""

    most_bytes = 0

    def add(
        self, positions: tuple[int, ...], weights: Tensor, mask: Tensor | None, queries: slice
    ) -> None:
        self.most_bytes = max(self.most_bytes, weights.numel() * weights.element_size())
        super().add(positions, weights, mask, queries)


def test_a_long_prompt_is_reduced_in_parts_that_are_bounded() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 2, HEADS, LENGTH, WIDTH) * 2
    valid = torch.ones(2, LENGTH, dtype=torch.bool)
    valid[0, -50:] = False
    mask, bias = valid[:, None, None, :], torch.randn(1, HEADS, LENGTH, LENGTH)
    rows = Watched(valid)
    maps = PromptAttention(valid, causal=False, rows=rows)
    options = {"scaling": 0.5, "position_bias": bias}
    for layer in range(2):
        maps.observe(AttentionCall(layer, query, key * (layer + 1), mask, None, options))
    maps.reduce()
    rows.finish()

    assert 0 < rows.most_bytes <= CHUNK_BYTES
    assert CHUNK_BYTES < 4 * 2 * HEADS * LENGTH**2
    for layer in range(2):
        scores = query.double() @ (key * (layer + 1)).double().mT * 0.5 + bias.double()
        weights = torch.softmax(scores.masked_fill(~mask, -torch.inf), dim=-1)
        entropy = -torch.xlogy(weights, weights).sum(-1)
        for row in range(2):
            seen = valid[row]
            count = int(seen.sum())
            by_head = entropy[row][:, seen].mean(-1)
            largest = weights[row][:, seen].amax(-1)
            expected = torch.stack(
                (
                    by_head.mean() / math.log(2),
                    by_head.min() / math.log(2),
                    by_head.max() / math.log(2),
                    by_head.mean() / math.log(count),
                    largest.max(),
                    largest.min(),
                )
            )
            found = rows.by_layer[layer][:6, row].double()
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_collapsed_and_focused_are_heads_by_their_means() -> None:
    valid = torch.ones(1, 2, dtype=torch.bool)
    rows = RowStatistics(valid)
    even, sure = [0.5, 0.5], [1.0, 0.0]
    weights = torch.tensor([[[[sure, sure], [sure, even], [even, even]]]])[0]
    rows.add((0,), weights[None], None, slice(0, 2))
    rows.finish()
    *_, most, least, collapsed, focused = rows.by_layer[0][:, 0].tolist()
    assert (most, least) == (1.0, 0.5)
    assert (collapsed, focused) == (1.0, 1.0)


def test_nan_at_padding_is_none_and_elsewhere_stays() -> None:
    valid = torch.tensor([[True, True, False], [True, True, True]])
    weights = torch.full((1, 2, 1, 3, 3), 1 / 3)
    weights[..., 2, :] = torch.nan
    rows = RowStatistics(valid)
    rows.add((0,), weights, None, slice(0, 3))
    rows.finish()
    assert torch.isnan(rows.by_layer[0][0]).tolist() == [False, True]


@pytest.mark.parametrize(
    "mask",
    [
        torch.tensor([[1, 1, 0]]),
        torch.tensor([[[[True, True, False]]]]),
        torch.tensor([[[[0.0, 0.5, -3.4e38]] * 3]]),
        # A window: no query sees all, but every key that is no padding is seen.
        torch.tensor([[[[1, 0, 0], [1, 1, 0], [0, 1, 0]]]]).bool(),
    ],
    ids=["padding", "boolean", "additive with a bias", "windows"],
)
def test_padding_is_told_by_what_no_query_sees(mask: Tensor) -> None:
    found = visible_positions(mask, 2, 3)
    assert found is not None
    assert found.tolist() == [[True, True, False]] * 2


def test_a_mask_that_does_not_tell_is_not_read() -> None:
    assert visible_positions(None, 1, 3) is None
    for unknown in (object(), torch.ones(1, 1, 3, 4)):
        with pytest.raises(Unobservable, match="padding cannot be told"):
            visible_positions(unknown, 1, 3)
