"""Per-head statistics of the newest token's attention row, on the model's own backend."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import MOST_STEPS, Chunk, steps_together
from corevital.capture.masks import LOWEST, additive_mask
from corevital.capture.previous_token import newest_token_weight, places_within
from corevital.capture.unobservable import Unobservable

LN2: Final = math.log(2.0)
_TINY: Final = torch.finfo(torch.float32).tiny
COLLAPSED_BELOW: Final = 0.03
FOCUSED_ABOVE: Final = 0.9
# Products of float16 queries and keys can exceed that type before they are scaled. A power of 2
# takes them out of reach, and out again, without rounding.
_FLOAT16_HEADROOM: Final = 2.0**8


def grouped_scores(query: Tensor, key: Tensor, out: Tensor | None = None) -> Tensor:
    """Attention scores ``q . K^T``, with grouped-query heads, for ``ScoreOptions.apply`` to scale.

    Args:
        query: ``[B, H, Q, D]``, after rotary embedding.
        key: ``[B, Hkv, K, D]``; Hkv divides H.
        out: where to write the scores, contiguous, of the key's type.

    Returns:
        ``[B, H, Q, K]`` in the key's type, which under autocast may not be the query's; a part of
        the scores where that is float16.
    """
    batch, heads, queries, width = query.shape
    key_heads = key.shape[1]
    query = query.to(key.dtype)
    if key.dtype == torch.float16:
        query = query / _FLOAT16_HEADROOM
    rows = query.reshape(batch * key_heads, heads // key_heads * queries, width)
    if out is not None:
        out = out.view(*rows.shape[:2], -1)
    scores = torch.bmm(rows, key.reshape(batch * key_heads, -1, width).mT, out=out)
    return scores.view(batch, heads, queries, -1)


class AttentionCall(NamedTuple):
    """What one layer's attention function was given, and what it returned of weights.

    ``query`` ``[B, H, Q, D]``; ``key`` ``[B, Hkv, K, D]``, the whole cache; ``mask`` in the form of
    the backend; ``weights`` ``[B, H, Q, K]`` where the backend returns them; ``options`` are the
    keyword arguments.
    """

    position: int
    query: Tensor
    key: Tensor
    mask: Any
    weights: Tensor | None
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What an attention function does between the scores and the softmax."""

    scaling: float | None
    softcap: float | None
    sliding_window: int | None
    has_sinks: bool
    has_bias: bool

    @classmethod
    def of(cls, options: dict[str, Any]) -> ScoreOptions:
        """The keyword arguments of an attention function."""
        get = options.get
        return cls(
            get("scaling"),
            get("softcap"),
            get("sliding_window"),
            get("s_aux") is not None,
            get("position_bias") is not None,
        )

    def apply(self, scores: Tensor, width: int) -> Tensor:
        """Scale and cap what ``grouped_scores`` gave, in float32; ``width`` is that of a head.

        Scores in float32 are overwritten.
        """
        scaling = width**-0.5 if self.scaling is None else self.scaling
        if scores.dtype == torch.float16:
            scaling *= _FLOAT16_HEADROOM
        scores = scores.float().mul_(scaling)
        if self.softcap is not None:
            scores.div_(self.softcap).tanh_().mul_(self.softcap)
        return scores


def head_statistics(entropy: Tensor, normalized: Tensor, concentration: Tensor) -> Tensor:
    """Reduce per-head entropies and largest weights over heads.

    Args:
        entropy: ``[..., H]`` in nats.
        normalized: ``[..., H]``, entropy divided by the logarithm of the number of visible keys.
        concentration: ``[..., H]``, largest weight of each head's row.

    Returns:
        ``[8, ...]``: entropy mean, minimum and maximum over heads (bits), normalised entropy mean,
        concentration maximum and minimum, collapsed heads, focused heads. NaN entropies stay NaN.
    """
    return torch.stack(
        (
            entropy.mean(-1) / LN2,
            entropy.amin(-1) / LN2,
            entropy.amax(-1) / LN2,
            normalized.mean(-1),
            concentration.amax(-1),
            concentration.amin(-1),
            (normalized < COLLAPSED_BELOW).sum(-1).float(),
            (concentration > FOCUSED_ABOVE).sum(-1).float(),
        )
    )


def score_statistics(scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``softmax(scores)`` over the last dimension, its largest weight and its entropy (nats).

    With the largest score at 0, the largest weight is exp(-log normalizer), so the entropy
    ``log normalizer - sum(p * score)`` needs no logarithm of every weight. ``scores`` are
    overwritten.
    """
    scores.sub_(scores.amax(-1, keepdim=True))
    weights = torch.softmax(scores, dim=-1)
    concentration = weights.amax(-1)
    entropy = -torch.log(concentration) - torch.linalg.vecdot(weights, scores)
    return weights, concentration, entropy


def weight_statistics(weights: Tensor) -> tuple[Tensor, Tensor]:
    """Largest weight and entropy (nats) of weights over the last dimension."""
    logarithms = torch.log(weights.clamp(min=_TINY))
    return weights.amax(-1), -torch.linalg.vecdot(weights, logarithms)


_Row = tuple[int, Tensor, int, Any, bool, dict[str, Any], int]
"""Position, newest queries or weights, key count, mask, needs scores, options, query count."""


def _row_at(rows: _Row, place: int, keys_per_step: int) -> _Row:
    """One of several newest positions, as if those behind it had not been there."""
    position, given, keys, mask, needs_scores, options, queries = rows
    behind = given.shape[2] - 1 - place
    keys -= behind * keys_per_step
    row = given[:, :, place : place + 1]
    if not needs_scores:
        row = row[..., :keys]
    return position, row, keys, mask, needs_scores, options, queries - behind


@dataclass(slots=True)
class _StepLayers:
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
        """Additive mask of the newest row, broadcasting to ``[B, H, 1, K]``."""
        newest = (self.queries - 1, self.queries)
        window = self.options.sliding_window
        return additive_mask(self.mask, newest, self.queries, self.key_count, window, device)


class AttentionReducer:
    """Keeps each step's newest queries, and reduces several steps over all layers at once.

    A cache that only appends holds the keys of an earlier step as the first keys of a later one.
    So the rows of several steps come from one product of their queries with the latest keys, and
    the cache is read once for all of them. Cross-attention has the same keys at every step.

    Attributes:
        chunks: what has been reduced.
        previous_token: each head's weight on the previous token at the layer positions
            ``weight_layers``: chunks whose statistics are the heads.
        heads: number of heads of every layer position seen.
    """

    def __init__(
        self,
        most_steps: int = MOST_STEPS,
        weight_layers: range = range(0),
        *,
        keys_per_step: int = 1,
    ) -> None:
        self._most_steps = most_steps
        self._keys_per_step = keys_per_step
        self._weight_layers = weight_layers
        self._rows: list[_Row] = []
        self._options: dict[int, ScoreOptions] = {}
        self._keys: dict[int, Tensor] = {}
        self._blocks: dict[tuple[int, ...], _Block] = {}
        self._append_only = False
        self._kept = 1
        self._continues = False
        self.chunks: list[Chunk] = []
        self.previous_token: list[Chunk] = []
        self.heads: dict[int, int] = {}

    def begin_step(self, *, append_only: bool, positions: int = 1, continues: bool = False) -> None:
        """A forward pass begins.

        Args:
            append_only: whether its cache only appends.
            positions: of how many of its newest positions the rows are kept.
            continues: whether several queries see keys of forward passes before.
        """
        self._rows.clear()
        self._kept = positions
        self._continues = continues
        if append_only != self._append_only:
            self.reduce()
            self._append_only = append_only

    def observe(self, call: AttentionCall) -> None:
        """Keep what one layer's attention needs for its newest row."""
        position, query, key, mask, weights, options = call
        given = query if weights is None else weights
        queries = query.size(2)
        # A copy where a view would keep the queries of a whole prompt alive.
        row = given if queries == 1 else given[:, :, -self._kept :].clone()
        keys = key.size(2)
        previous = self._keys.get(position)
        if previous is not None and keys != previous.size(2) + self._kept * self._keys_per_step:
            # Not what was appended to: the pending steps can no longer be read from it.
            self.reduce()
        # The latest keys replace those before, so that an outgrown cache is let go at once.
        self._keys[position] = key
        self._rows.append((position, row, keys, mask, weights is None, options, queries))

    def end_step(self, step: int) -> None:
        """Put the rows of all layers by, to be reduced together with those of other steps."""
        self._put_by(step)
        if not self._append_only:
            self._keys.clear()

    def end_steps(self, step: int, accepted: int) -> None:
        """The same for the first ``accepted`` of the positions kept, a step each from ``step`` on.

        Raises:
            Unobservable: an attention reaches fewer positions than were kept.
        """
        rows, kept = self._rows, self._kept
        if any(row.shape[2] != kept for _, row, *_ in rows):
            raise Unobservable("a layer's attention does not reach every candidate")
        for place in range(accepted):
            self._rows = [_row_at(row, place, self._keys_per_step) for row in rows]
            self._put_by(step + place)
        rejected = (kept - accepted) * self._keys_per_step
        self._keys = {
            position: key[:, :, : key.shape[2] - rejected] for position, key in self._keys.items()
        }
        if not self._append_only:
            self._keys.clear()

    def _put_by(self, step: int) -> None:
        for layers in self._grouped():
            positions = tuple(layers.positions)
            block = self._blocks.get(positions)
            if block is not None and not block.continues_with(layers):
                self._reduce(block)
                block = None
            if block is None:
                block = _Block(layers, self._most_steps, self._keys_per_step)
                self._blocks[positions] = block
                self.heads |= dict.fromkeys(positions, layers.shape[1])
            block.add(step, layers)
        if not self._append_only:
            self.reduce()

    def finish(self) -> None:
        """Reduce what is pending, and let go of the keys."""
        self.reduce()
        self._rows.clear()
        self._keys.clear()

    def _grouped(self) -> list[_StepLayers]:
        """The step's rows, grouped by shape, mask and options."""
        rows, self._rows = self._rows, []
        groups: list[_StepLayers] = []
        seen: set[int] = set()
        biases: dict[int, Tensor] = {}
        for position, row, key_count, mask, needs_scores, given, queries in rows:
            if position in seen:
                continue
            seen.add(position)
            options = self._options_of(position, given)
            # Without a mask, a prompt sees itself only: what follows in a fixed-size cache is not
            # filled yet.
            alone = mask is None and queries > 1 and not (self._append_only or self._continues)
            alone = alone and self._keys_per_step > 0
            shape, keys = row.shape, min(key_count, queries) if alone else key_count
            for group in groups:
                if (
                    group.mask is mask
                    and group.options is options
                    and group.key_count == keys
                    and group.shape == shape
                    and group.needs_scores == needs_scores
                ):
                    break
            else:
                group = _StepLayers(shape, mask, options, needs_scores, queries, keys)
                groups.append(group)
            group.positions.append(position)
            group.rows.append(row)
            if needs_scores and options.has_sinks:
                group.sinks.append(given["s_aux"])
            if needs_scores and options.has_bias:
                # Layers often share one bias, which is then taken once.
                bias = given["position_bias"]
                if id(bias) not in biases:
                    biases[id(bias)] = row_bias(bias, queries - 1, keys)
                group.biases.append(biases[id(bias)])
        return groups

    def _options_of(self, position: int, given: dict[str, Any]) -> ScoreOptions:
        """The layer's options, which never change; equal ones are one object."""
        options = self._options.get(position)
        if options is None:
            read = ScoreOptions.of(given)
            options = next((known for known in self._options.values() if known == read), read)
            self._options[position] = options
        return options

    def reduce(self) -> None:
        """Reduce all pending steps to chunks."""
        for block in self._blocks.values():
            self._reduce(block)
        self._blocks.clear()

    @unaffected_by_autocast
    def _reduce(self, block: _Block) -> None:
        chunk, weights, mask = block.reduce(self._keys)
        self.chunks.append(chunk)
        places = places_within(chunk.positions, self._weight_layers)
        if places.stop > 0:
            own = newest_token_weight(weights[places], mask, last_is_newest=self._append_only)
            self.previous_token.append(Chunk(chunk.steps, chunk.positions[places], own))


class _Block:
    """The same layers over a few consecutive steps."""

    def __init__(self, layers: _StepLayers, most_steps: int, keys_per_step: int) -> None:
        self._keys_per_step = keys_per_step
        batch, heads = layers.shape[:2]
        per_step = 4 * len(layers.rows) * batch * heads * layers.key_count
        self._room = steps_together(per_step, most_steps)
        self._steps: list[int] = []
        self._layers: list[_StepLayers] = []

    def continues_with(self, layers: _StepLayers) -> bool:
        """Whether a step can be reduced together with those added before."""
        last = self._layers[-1]
        return (
            len(self._steps) < self._room
            and layers.key_count == last.key_count + self._keys_per_step
            and layers.options == last.options
            and layers.shape[:2] == last.shape[:2]
            and layers.needs_scores == last.needs_scores
        )

    def add(self, step: int, layers: _StepLayers) -> None:
        """Add one step."""
        self._steps.append(step)
        self._layers.append(layers)

    def reduce(self, keys: dict[int, Tensor]) -> tuple[Chunk, Tensor, Tensor | None]:
        """Reduce the steps added to statistics over heads; ``keys`` by layer position.

        Returns the weights ``[l, B, H, n, K]`` and their mask besides.
        """
        last = self._layers[-1]
        if not last.needs_scores:
            weights = self._padded_weights()
            mask = self._mask(weights)
            concentration, entropy = weight_statistics(weights)
        else:
            rows = self._scores(keys)
            if last.biases:
                rows.add_(self._bias(rows.device))
            mask = self._mask(rows)
            if mask is not None:
                rows.add_(mask).clamp_(min=LOWEST)
            weights, concentration, entropy = _with_sinks(rows, last.sinks)
        entropy = entropy.clamp(min=0.0)
        normalized = entropy / log_visible(mask, last.key_count)
        per_head = (entropy, normalized.clamp(max=1.0), concentration)
        statistics = head_statistics(*(values.permute(3, 0, 1, 2) for values in per_head))
        return Chunk(tuple(self._steps), tuple(last.positions), statistics), weights, mask

    def _scores(self, keys: dict[int, Tensor]) -> Tensor:
        """Scaled and capped scores of all layers and steps, ``[l, B, H, n, K]``."""
        last = self._layers[-1]
        device = last.rows[-1].device
        dtype = keys[last.positions[-1]].dtype
        shape = (len(last.positions), *last.shape[:2], len(self._layers), last.key_count)
        scores = torch.empty(shape, dtype=dtype, device=device)
        for place, position in enumerate(last.positions):
            queries = [layers.rows[place] for layers in self._layers]
            query = queries[0] if len(queries) == 1 else torch.cat(queries, dim=2)
            key = keys[position][:, :, : last.key_count]
            if key.device == device and key.dtype == dtype:
                grouped_scores(query, key, out=scores[place])
            else:
                scores[place].copy_(grouped_scores(query, key), non_blocking=True)
        return last.options.apply(scores, last.shape[3])

    def _bias(self, device: torch.device) -> Tensor:
        """Position bias of all layers and steps, broadcasting to ``[l, B, H, n, K]``."""
        keys = self._layers[-1].key_count
        steps = []
        for layers in self._layers:
            bias = stacked_bias(layers.biases, device)
            steps.append(torch.nn.functional.pad(bias, (0, keys - layers.key_count)))
        return steps[0] if len(steps) == 1 else torch.cat(steps, dim=3)

    def _padded_weights(self) -> Tensor:
        """Weights of all layers and steps, ``[l, B, H, n, K]``, 0 beyond a step's last key."""
        last = self._layers[-1]
        device = last.rows[-1].device
        batch, heads = last.shape[:2]
        shape = (len(last.rows), batch, heads, len(self._layers), last.key_count)
        rows = torch.zeros(shape, dtype=torch.float32, device=device)
        for at, layers in enumerate(self._layers):
            on_device = [row.to(device, non_blocking=True) for row in layers.rows]
            rows[..., at, : layers.key_count] = torch.stack(on_device).squeeze(-2)
        return rows

    def _mask(self, rows: Tensor) -> Tensor | None:
        """Additive mask that broadcasts to ``[B, H, n, K]``; ``None`` if all keys are visible."""
        masks = [layers.newest_mask(rows.device) for layers in self._layers]
        if len(masks) == 1:
            return masks[0]
        keys = self._layers[-1].key_count
        if self._keys_per_step == 0 and all(mask is None for mask in masks):
            return None
        shape = (len(masks), keys)
        causal = torch.full(shape, LOWEST, dtype=torch.float32, device=rows.device)
        causal.triu_(keys - (len(masks) - 1) * self._keys_per_step)
        if all(mask is None for mask in masks):
            return causal
        wide = [
            causal[at] if mask is None else _widened(mask, keys) for at, mask in enumerate(masks)
        ]
        return torch.cat([mask.expand(*_broadcast(wide), 1, keys) for mask in wide], dim=2)


def row_bias(bias: Tensor, query: int, keys: int) -> Tensor:
    """One query's part of a position bias ``[B or 1, H, Q, K]``, for the first ``keys``."""
    row = bias[:, :, query : query + 1, :keys]
    # A copy where a view would keep the bias of a whole prompt alive.
    return row if bias.shape[2] == 1 else row.clone()


def stacked_bias(
    biases: list[Tensor],
    device: torch.device,
    queries: slice = slice(None),
    keys: slice = slice(None),
) -> Tensor:
    """A part of some layers' position biases, ``[l or 1, B or 1, H, q, k]`` in float32."""
    if all(bias is biases[0] for bias in biases):
        biases = biases[:1]
    return torch.stack([bias[:, :, queries, keys].to(device) for bias in biases]).float()


def _widened(mask: Tensor, keys: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, keys - mask.shape[-1]), value=LOWEST)


def _broadcast(masks: list[Tensor]) -> tuple[int, int]:
    shapes = [mask.shape[:2] for mask in masks if mask.dim() == 4]
    return max(shape[0] for shape in shapes), max(shape[1] for shape in shapes)


def _with_sinks(scores: Tensor, sinks: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """The softmax over keys and its statistics; a sink takes its part of it but is no key."""
    if not sinks:
        return score_statistics(scores)
    column = torch.stack(sinks).float()[:, None, :, None, None].expand(*scores.shape[:-1], 1)
    weights = torch.softmax(torch.cat((scores, column.to(scores.device)), dim=-1), dim=-1)
    weights = weights[..., :-1]
    return weights, *weight_statistics(weights)


def log_visible(mask: Tensor | None, keys: int) -> Tensor | float:
    """Natural logarithm of the number of visible keys, broadcasting to ``[l, B, H, n]``.

    One visible key has no entropy: any positive divisor gives the 0 that the definition asks for.
    """
    if mask is None:
        return math.log(max(keys, 2))
    counts = (mask > LOWEST / 2).sum(-1).clamp(min=2)
    return torch.log(counts.float())
