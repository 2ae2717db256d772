"""Attention rows of a few consecutive steps, reduced together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from corevital.capture.attention_scores import (
    LANES,
    ScoreOptions,
    score_statistics,
    sink_statistics,
    stacked_bias,
    weight_statistics,
)
from corevital.capture.chunk import bytes_together, steps_together
from corevital.capture.masks import LOWEST, additive_mask
from corevital.capture.run_memory import RunMemory
from corevital.capture.scratch import Scratch
from corevital.capture.step_rows import StepRows
from corevital.capture.transfer import moved

SHARE_COPIED: Final = 16


@dataclass(slots=True)
class StepLayers:
    """Layers of one step whose attention has the same shape, mask and options.

    ``rows`` are the newest queries ``[B, H, 1, D]``, or their weights ``[B, H, 1, K]`` where the
    backend gives them.
    """

    shape: torch.Size
    mask: Any
    options: ScoreOptions
    needs_scores: bool
    queries: int
    key_count: int
    positions: list[int] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)
    sinks: list[Tensor] = field(default_factory=list)
    biases: list[Tensor] = field(default_factory=list)

    def newest_mask(self, device: torch.device) -> Tensor | None:
        """Additive mask of the newest row, ``[B or 1, H or 1, 1, K]``; ``None`` without any."""
        newest = (self.queries - 1, self.queries)
        window = self.options.sliding_window
        mask = additive_mask(self.mask, newest, self.queries, self.key_count, window, device)
        return mask[None, None] if mask is not None and mask.dim() == 2 else mask


class WeighedRows(NamedTuple):
    """The rows of some layers of a block: those at ``places``.

    ``weights`` ``[l, B, H, n, K]`` hold until the next layers are weighed; ``concentration`` and
    ``entropy`` (nats) are ``[l, B, H, n]``.
    """

    places: slice
    weights: Tensor
    concentration: Tensor
    entropy: Tensor


class Block:
    """The same layers over a few consecutive steps.

    Attributes:
        steps: those added.
    """

    def __init__(
        self, layers: StepLayers, most_steps: int, keys_per_step: int, memory: Scratch
    ) -> None:
        self._keys_per_step = keys_per_step
        self._memory = memory
        self._queries: StepRows | None = None
        held = sum(row.numel() * row.element_size() for row in layers.rows)
        # Each reduction reads all keys: that is worth computing more of a layer than goes best
        # together.
        computed = 4 * layers.shape[0] * layers.shape[1] * layers.key_count
        most_bytes = 2 * bytes_together(layers.rows[-1].device)
        most_steps = steps_together(held, most_steps)
        self._room = steps_together(computed, most_steps, most_bytes)
        self._layers: list[StepLayers] = []
        self.steps: list[int] = []

    @property
    def positions(self) -> list[int]:
        """Of the layers."""
        return self._layers[-1].positions

    @property
    def key_count(self) -> int:
        """Keys of the newest step."""
        return self._layers[-1].key_count

    @property
    def device(self) -> torch.device:
        """Where the rows are reduced."""
        rows = self._layers[-1].rows[-1] if self._queries is None else self._queries.rows
        return rows.device

    def continues_with(self, layers: StepLayers) -> bool:
        """Whether a step can be reduced together with those added before."""
        last = self._layers[-1]
        # Rows of whole lanes take a fifth less time.
        whole = self._room >= LANES and self._keys_per_step > 0 and last.key_count % LANES == 0
        return (
            len(self.steps) < self._room
            and not whole
            and layers.key_count == last.key_count + self._keys_per_step
            and layers.options is last.options
            and layers.shape[:2] == last.shape[:2]
            and layers.needs_scores == last.needs_scores
        )

    def add(self, step: int, layers: StepLayers) -> None:
        """Add one step."""
        if layers.needs_scores:
            if self._queries is None:
                dtype = layers.rows[-1].dtype
                self._queries = StepRows(self._memory, self._room, layers.rows, dtype)
            self._queries.put(len(self.steps), layers.rows)
            layers.rows.clear()
        self.steps.append(step)
        self._layers.append(layers)

    def weigh(
        self, keys: dict[int, Tensor], mask: Tensor | None, memory: RunMemory
    ) -> Iterator[WeighedRows]:
        """The rows of all layers, as many layers at a time as go well together.

        Args:
            keys: by layer position.
            mask: what ``mask`` returned.
            memory: where to compute.
        """
        last = self._layers[-1]
        per_layer = 4 * last.shape[0] * last.shape[1] * len(self._layers) * last.key_count
        together = max(1, bytes_together(self.device) // max(per_layer, 1))
        for start in range(0, len(last.positions), together):
            places = slice(start, start + together)
            if last.needs_scores:
                scores = self._scores(keys, places, memory)
                if last.biases:
                    scores.add_(self._bias(places))
                if mask is not None:
                    self._hide(scores, mask)
                if last.sinks:
                    weighed = sink_statistics(scores, last.sinks[places])
                else:
                    weights = memory.results.tensor(scores.shape, scores.dtype, scores.device)
                    weighed = score_statistics(scores, weights)
            else:
                weights = self._padded_weights(places, memory)
                weighed = weights, *weight_statistics(weights)
            yield WeighedRows(places, *weighed)

    def _scores(self, keys: dict[int, Tensor], places: slice, memory: RunMemory) -> Tensor:
        """Scaled and capped scores of some layers at all steps, ``[l, B, H, n, K]``."""
        last, device = self._layers[-1], self.device
        options, positions = last.options, last.positions[places]
        dtype = keys[positions[-1]].dtype
        shape = (len(positions), *last.shape[:2], len(self._layers), last.key_count)
        scores = memory.products.tensor(shape, dtype, device)
        assert self._queries is not None
        steps = len(self._layers)
        queries = self._queries.rows[:steps].view(steps, len(last.positions), *last.shape)
        queries = queries[:, places, ..., 0, :].permute(1, 2, 3, 0, 4)
        seen = [keys[position][:, :, : last.key_count] for position in positions]
        if _go_together(seen):
            of_all = memory.keys.tensor((len(seen), *seen[0].shape), dtype, device)
            torch.cat(seen, out=of_all.flatten(0, 1))
            options.product(queries.flatten(0, 1), of_all.flatten(0, 1), scores.flatten(0, 1))
        else:
            for own, key, rows in zip(scores, seen, queries, strict=True):
                options.write_product(moved(rows, key.device), key, own)
        exact = None
        if dtype != torch.float32:
            exact = memory.scores.tensor(shape, torch.float32, device)
        return options.apply(scores, last.shape[3], exact)

    def _hide(self, scores: Tensor, mask: Tensor) -> None:
        """Add a mask to ``[l, B, H, n, K]``."""
        if mask.dim() == 2:
            # Causality alone hides none but the newest keys.
            newest = slice(self.key_count - (len(mask) - 1) * self._keys_per_step, None)
            scores, mask = scores[..., newest], mask[:, newest]
        scores.add_(mask).clamp_(min=LOWEST)

    def _bias(self, places: slice) -> Tensor:
        """Position bias of some layers at all steps, broadcasting to ``[l, B, H, n, K]``."""
        keys = self._layers[-1].key_count
        steps = []
        for layers in self._layers:
            bias = stacked_bias(layers.biases[places], self.device)
            steps.append(torch.nn.functional.pad(bias, (0, keys - layers.key_count)))
        return steps[0] if len(steps) == 1 else torch.cat(steps, dim=3)

    def _padded_weights(self, places: slice, memory: RunMemory) -> Tensor:
        """Weights of some layers at all steps, ``[l, B, H, n, K]``, 0 beyond a step's last key."""
        last, device = self._layers[-1], self.device
        layers_given = len(last.rows[places])
        shape = (layers_given, *last.shape[:2], len(self._layers), last.key_count)
        weights = memory.results.tensor(shape, torch.float32, device).zero_()
        for at, layers in enumerate(self._layers):
            on_device = [moved(row, device) for row in layers.rows[places]]
            weights[..., at, : layers.key_count] = torch.stack(on_device).squeeze(-2)
        return weights

    def mask(self) -> Tensor | None:
        """Additive mask, broadcasting to ``[B, H, n, K]``; ``None`` if all keys are visible.

        ``[n, K]`` where it is nothing but causal.
        """
        masks = [layers.newest_mask(self.device) for layers in self._layers]
        if len(masks) == 1:
            return masks[0]
        keys = self._layers[-1].key_count
        if self._keys_per_step == 0 and all(mask is None for mask in masks):
            return None
        shape = (len(masks), keys)
        causal = torch.full(shape, LOWEST, dtype=torch.float32, device=self.device)
        causal.triu_(keys - (len(masks) - 1) * self._keys_per_step)
        if all(mask is None for mask in masks):
            return causal
        wide = [
            causal[at] if mask is None else _widened(mask, keys) for at, mask in enumerate(masks)
        ]
        return torch.cat([mask.expand(*_broadcast(wide), 1, keys) for mask in wide], dim=2)


def _go_together(keys: list[Tensor]) -> bool:
    """Whether copying some layers' keys costs less than a product for each of them."""
    last = keys[-1]
    kind = last.shape, last.dtype, last.device
    few = last.numel() * last.element_size() <= bytes_together(last.device) // SHARE_COPIED
    return few and all((key.shape, key.dtype, key.device) == kind for key in keys)


def _widened(mask: Tensor, keys: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, keys - mask.shape[-1]), value=LOWEST)


def _broadcast(masks: list[Tensor]) -> tuple[int, int]:
    shapes = [mask.shape[:2] for mask in masks if mask.dim() == 4]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def row_bias(bias: Tensor, query: int, keys: int) -> Tensor:
    """One query's part of a position bias ``[B or 1, H, Q, K]``, for the first ``keys``."""
    row = bias[:, :, query : query + 1, :keys]
    # A copy where a view would keep the bias of a whole prompt alive.
    return row if bias.shape[2] == 1 else row.clone()
