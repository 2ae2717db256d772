"""What the prefill shows about the prompt, reduced layer by layer in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from corevital.capture.attention import AttentionCall
from corevital.capture.attention_rows import RowStatistics
from corevital.capture.attention_scores import ScoreOptions, stacked_bias, stacked_sinks
from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.hidden import successive_cosines
from corevital.capture.masks import additive_mask
from corevital.capture.run_memory import RunMemory
from corevital.capture.transfer import moved

SPARSE_ABOVE: Final = 0.01
MOST_SPARSE_PER_LAYER: Final = 8192
CHUNK_BYTES: Final = 2 * 2**20


@dataclass(frozen=True, slots=True)
class SparseWeights:
    """All weights above the threshold of the newest queries, in some layers.

    ``index`` ``[n]`` points into an array of ``shape`` (layer, batch row, head, query, key), whose
    first query is ``first_query``; -1 behind those used. ``weight`` ``[n]`` are the weights,
    ``total`` ``[l, B, H]`` counts those of all queries.
    """

    positions: tuple[int, ...]
    shape: tuple[int, ...]
    first_query: int
    index: Tensor
    weight: Tensor
    total: Tensor


def key_thirds(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Masks of the middle third and the outer thirds of each row's prompt.

    Args:
        valid: ``[B, P]`` boolean, False at padding on the left or right.

    Returns:
        Two float masks ``[B, P]``. Of ``n`` tokens the middle ones are ``n//3 ... 2n//3 - 1``.
    """
    length = valid.sum(-1, keepdim=True)
    place = valid.cumsum(-1) - 1
    middle = valid & (place >= length // 3) & (place < 2 * length // 3)
    return middle.float(), (valid & ~middle).float()


@dataclass(frozen=True, slots=True)
class _LayerAttention:
    call: AttentionCall
    options: ScoreOptions

    @property
    def sinks(self) -> Tensor | None:
        sinks: Tensor | None = self.call.options["s_aux"] if self.options.has_sinks else None
        return sinks if self.call.weights is None else None

    @property
    def bias(self) -> Tensor:
        """Position bias ``[B or 1, H, Q, K]``."""
        bias: Tensor = self.call.options["position_bias"]
        return bias

    def write_product(self, queries: slice, keys: int, out: Tensor) -> None:
        """Write that of some queries with the first ``keys`` to ``out``."""
        query, key = self.call.query, self.call.key
        assert query is not None
        assert key is not None
        self.options.write_product(query[:, :, queries], key[:, :, :keys], out)

    def goes_with(self, other: _LayerAttention) -> bool:
        """Whether both layers can be reduced together."""
        return (
            self.call.mask is other.call.mask
            and self.call.rows.shape == other.call.rows.shape
            and self.options == other.options
            and (self.call.weights is None) == (other.call.weights is None)
        )


class PromptAttention:
    """Basin score and sparse weights of every prompt attention matrix.

    At most ``CHUNK_BYTES`` of weights are reduced at a time: several layers of a short prompt, some
    queries of one layer of a long one. ``causal`` tells whether a token sees none that follows it;
    ``rows`` is shown all weights besides. Of each prompt the first of ``answers`` rows is read;
    ``valid`` ``[N, P]`` and all results have these ``N`` only.
    """

    def __init__(
        self,
        valid: Tensor,
        *,
        causal: bool = True,
        rows: RowStatistics | None = None,
        answers: int = 1,
        memory: RunMemory | None = None,
    ) -> None:
        self._memory = memory or RunMemory()
        self._valid = valid
        self._answers = answers
        self._causal = causal
        self._rows = rows
        self._middle, self._outer = key_thirds(valid)
        self._waiting: list[_LayerAttention] = []
        self.basin: dict[int, Tensor] = {}
        self.sparse: list[SparseWeights] = []

    def observe(self, call: AttentionCall) -> None:
        """Take one layer's attention over the whole prompt; its queries and keys are the same."""
        if self._answers > 1:
            call = _of_each_prompt(call, self._answers)
        batch, heads, length, _ = call.rows.shape
        layer = _LayerAttention(call, ScoreOptions.of(call.options))
        # Of a layer that attends several times, the last counts.
        self._waiting = [each for each in self._waiting if each.call.position != call.position]
        if self._waiting and not layer.goes_with(self._waiting[0]):
            self.reduce()
        self._waiting.append(layer)
        if (len(self._waiting) + 1) * 4 * batch * heads * length**2 > CHUNK_BYTES:
            self.reduce()

    @unaffected_by_autocast
    def reduce(self) -> None:
        """Reduce the layers that wait."""
        layers, self._waiting = self._waiting, []
        if not layers:
            return
        batch, heads, length, _ = layers[0].call.rows.shape
        queries = max(1, min(length, CHUNK_BYTES // (4 * len(layers) * batch * heads * length)))
        device, shape = layers[-1].call.rows.device, (len(layers), batch, heads)
        valid = moved(self._valid, device)
        columns = torch.zeros(*shape, length, dtype=torch.float32, device=device)
        total = torch.zeros(shape, dtype=torch.long, device=device)
        newest: Tensor | None = None
        # Of a long prompt, what is held between two layers would add to the model's own peak.
        memory = self._memory if len(layers) > 1 else RunMemory()
        positions = tuple(layer.call.position for layer in layers)
        for stop in range(length, 0, -queries):
            start = max(stop - queries, 0)
            weights, mask = self._weights(layers, start, stop, memory)
            if self._rows is not None:
                self._rows.add(positions, weights, mask, slice(start, stop))
            weights.mul_(valid[:, None, start:stop, None])
            columns[..., : weights.shape[-1]] += weights.sum(-2)
            # Counted as numbers: to sum truth values, a CPU copies them to eight times the bytes.
            above = memory.products.tensor(weights.shape, torch.float32, device)
            torch.gt(weights, SPARSE_ABOVE, out=above)
            total += above.sum((-1, -2)).long()
            if newest is None:
                newest = _newest_rows(weights)
        self.basin |= dict(zip(positions, self._basin_scores(columns), strict=True))
        assert newest is not None
        self.sparse.append(_sparse_weights(positions, newest, length, total))

    def _weights(
        self, layers: list[_LayerAttention], start: int, stop: int, memory: RunMemory
    ) -> tuple[Tensor, Tensor | None]:
        """Attention weights ``[l, B, H, stop - start, K]`` of some queries, softmax in float32.

        And their additive mask, broadcasting to ``[B, H, stop - start, K]``; ``None`` without one.
        Masks and position biases are still those of all rows, of which ``answers`` have each
        prompt. The weights hold until the next ones are asked for.
        """
        first, answers = layers[0], self._answers
        length, width = first.call.rows.shape[2:]
        device = layers[-1].call.rows.device
        given = [layer.call.weights for layer in layers if layer.call.weights is not None]
        # Without an explicit mask, causal attention sees no later keys.
        seen = stop if first.call.mask is None and self._causal else length
        keys = length if given else seen
        window, rows = first.options.sliding_window, (start, stop)
        mask = additive_mask(
            first.call.mask, rows, length, keys, window, device, causal=self._causal
        )
        if mask is not None and mask.dim() == 4 and len(mask) > 1:
            mask = mask[::answers]
        if given:
            parts = [weights[:, :, start:stop, :length].to(device) for weights in given]
            return torch.stack(parts).float(), mask
        scores = first.options.apply(_products(layers, slice(start, stop), keys, memory), width)
        if first.options.has_bias:
            biases = [layer.bias for layer in layers]
            bias = stacked_bias(biases, device, slice(start, stop), slice(keys))
            scores.add_(bias[:, ::answers] if bias.shape[1] > 1 else bias)
        if mask is not None:
            scores.add_(mask)
        sinks = [layer.sinks for layer in layers if layer.sinks is not None]
        if not sinks:
            weights = memory.results.tensor(scores.shape, torch.float32, device)
            return torch.softmax(scores, dim=-1, out=weights), mask
        column = stacked_sinks(sinks, device)[..., None].expand(*scores.shape[:-1], 1)
        return torch.softmax(torch.cat((scores, column), dim=-1), dim=-1)[..., :-1], mask

    def release(self) -> None:
        """Let go of the prompt's queries and keys."""
        self._waiting.clear()

    def _basin_scores(self, columns: Tensor) -> Tensor:
        """Weight on the middle third divided by that on the outer thirds, ``[l, B, H]``.

        A prompt of fewer than three tokens has no middle: its score is 1.
        """
        device = columns.device
        middle, outer = (
            torch.linalg.vecdot(columns, moved(keys, device)[:, None])
            for keys in (self._middle, self._outer)
        )
        scores = middle / outer.clamp(min=torch.finfo(torch.float32).tiny)
        no_middle = moved(self._valid.sum(-1), device)[:, None] < 3
        return torch.where(no_middle, torch.ones_like(scores), scores)


def _newest_rows(weights: Tensor) -> Tensor:
    """The newest queries' rows, so few that all their weights above the threshold fit the list."""
    _, batch, heads, queries, keys = weights.shape
    most_per_row = min(keys, int(1 / SPARSE_ABOVE))
    rows = MOST_SPARSE_PER_LAYER // (batch * heads * most_per_row)
    newest = weights[..., -max(1, min(rows, queries)) :, :]
    return newest.clone(memory_format=torch.contiguous_format)


def _sparse_weights(
    positions: tuple[int, ...], rows: Tensor, length: int, total: Tensor
) -> SparseWeights:
    flat = rows.flatten()
    most_per_row = min(rows.shape[-1], int(1 / SPARSE_ABOVE))
    # Of a size that does not depend on the data, so that an accelerator need not be waited for.
    size = flat.numel() // rows.shape[-1] * most_per_row
    index = torch.nonzero_static(flat > SPARSE_ABOVE, size=size, fill_value=-1).squeeze(-1)
    shape = tuple(rows.shape)
    weight = flat[index]
    return SparseWeights(positions, shape, length - shape[3], index.int(), weight, total)


def _of_each_prompt(call: AttentionCall, answers: int) -> AttentionCall:
    """The rows of one layer's call that are the first of ``answers`` to their prompt."""
    # Copies where views would keep the rows of all answers alive; the keys are the cache's.
    key = None if call.key is None else call.key[::answers]
    return call.taking(lambda rows: rows[::answers].clone())._replace(key=key)


def _products(
    layers: list[_LayerAttention], queries: slice, keys: int, memory: RunMemory
) -> Tensor:
    """Of some queries with the first ``keys``, ``[l, B, H, q, K]``."""
    call = layers[-1].call
    batch, heads, _, _ = call.rows.shape
    assert call.key is not None
    shape = (len(layers), batch, heads, queries.stop - queries.start, keys)
    products = memory.products.tensor(shape, call.key.dtype, call.rows.device)
    for layer, own in zip(layers, products, strict=True):
        layer.write_product(queries, keys, own)
    return products


class LayerTransformation:
    """1 - cosine between a layer's output and its input, averaged over the prompt's tokens."""

    def __init__(self, valid: Tensor) -> None:
        self._valid = valid.float()
        self._before: Tensor | None = None
        self._waiting: list[tuple[int, Tensor]] = []
        self.by_layer: dict[int, Tensor] = {}

    def observe(self, position: int, before: Tensor | None, after: Tensor) -> None:
        """``after`` ``[B, P, D]`` is a layer's output.

        ``before`` is its input, ``None`` where that is the output of the layer before, or where
        there is none, not known. A layer without an input of its output's shape has no value.
        """
        if before is not None:
            self.reduce()
            self._before = before if before.shape == after.shape else None
        self._waiting.append((position, after))
        if len(self._waiting) * 4 * after.numel() >= CHUNK_BYTES:
            self.reduce()

    @unaffected_by_autocast
    def reduce(self) -> None:
        """Reduce the layers that wait; keep the last output for the next layer."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        device = waiting[-1][1].device
        states = [after for _, after in waiting]
        positions = [position for position, _ in waiting]
        if self._before is not None:
            states.insert(0, self._before)
        else:
            positions = positions[1:]
        batch, length, width = states[0].shape
        tokens = max(1, CHUNK_BYTES // (4 * batch * width))
        changes = []
        for start in range(0, length, tokens):
            parts = [state[:, start : start + tokens].to(device) for state in states]
            changes.append(1.0 - successive_cosines(torch.stack(parts).float()))
        weight = moved(self._valid, device)
        # Padding may give NaN, which no weight of 0 removes.
        change = torch.where(weight > 0, torch.cat(changes, dim=-1), 0.0)
        mean = change.sum(-1) / weight.sum(-1)
        self.by_layer |= dict(zip(positions, mean, strict=True))
        self._before = waiting[-1][1]

    def release(self) -> None:
        """Let go of the prompt's states."""
        self._before = None
        self._waiting.clear()
