"""Per-head statistics of the newest token's attention row, on the model's own backend."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from corevital.capture.attention_block import Block, StepLayers, row_bias
from corevital.capture.attention_scores import ScoreOptions, head_statistics, log_visible
from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.cache import NewestKey
from corevital.capture.chunk import MOST_STEPS, Chunk, join_newest
from corevital.capture.previous_token import newest_token_weight, places_within
from corevital.capture.run_memory import RunMemory
from corevital.capture.scratch import Scratch
from corevital.capture.transfer import moved
from corevital.capture.unobservable import Unobservable


class AttentionCall(NamedTuple):
    """What one layer's attention was given, and what it returned of weights.

    ``query`` ``[B, H, Q, D]``; ``key`` ``[B, Hkv, K, D]``, the whole cache; ``mask`` in the form of
    the backend; ``weights`` ``[B, H, Q, K]`` where they are returned, without which queries and
    keys are known; ``options`` are the keyword arguments of an attention function.
    """

    position: int
    query: Tensor | None
    key: Tensor | None
    mask: Any
    weights: Tensor | None
    options: dict[str, Any]

    @property
    def rows(self) -> Tensor:
        """The weights where there are any, else the queries: ``[B, H, Q, ...]``."""
        rows = self.query if self.weights is None else self.weights
        assert rows is not None
        return rows

    @property
    def keys(self) -> int:
        """``K``."""
        if self.key is not None:
            return self.key.size(2)
        return self.rows.size(3)

    def taking(self, take: Callable[[Tensor], Tensor]) -> AttentionCall:
        """The same with another choice of queries or rows of the batch."""
        query, weights = (
            None if rows is None else take(rows) for rows in (self.query, self.weights)
        )
        return self._replace(query=query, weights=weights)


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


def _rows_of(chunk: Chunk, rows: Tensor) -> Chunk:
    statistics = chunk.statistics
    return replace(chunk, statistics=statistics.index_select(3, moved(rows, statistics.device)))


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
        keys: by layer position, the newest keys ``[B, Hkv, K, D]``.
        expected_keys: K of every layer at this step if its cache is only appended to; ``None``
            where layers differ, or nothing is known of the step before.
    """

    def __init__(
        self,
        most_steps: int = MOST_STEPS,
        weight_layers: range = range(0),
        *,
        keys_per_step: int = 1,
        memory: RunMemory | None = None,
    ) -> None:
        self._most_steps = most_steps
        self._keys_per_step = keys_per_step
        self._weight_layers = weight_layers
        self._rows: list[_Row] = []
        self._attended: set[int] = set()
        self._options: dict[int, ScoreOptions] = {}
        self._key_count: int | None = None
        self._blocks: dict[tuple[int, ...], Block] = {}
        self._memory = memory or RunMemory()
        self._queries: dict[tuple[int, ...], Scratch] = {}
        self._append_only = False
        self._newest_key = NewestKey.LAST
        self._kept = 1
        self._growth = keys_per_step
        self._continues = False
        self._decided: tuple[int, int] | None = None
        self.chunks: list[Chunk] = []
        self.previous_token: list[Chunk] = []
        self.heads: dict[int, int] = {}
        self.keys: dict[int, Tensor] = {}
        self.expected_keys: int | None = None

    def begin_step(
        self,
        *,
        append_only: bool,
        newest_key: NewestKey = NewestKey.LAST,
        positions: int = 1,
        continues: bool = False,
        undecided: bool = False,
    ) -> None:
        """A forward pass begins.

        Args:
            append_only: whether its cache only appends.
            newest_key: where its newest key is.
            positions: of how many of its newest positions the rows are kept.
            continues: whether several queries see keys of forward passes before.
            undecided: whether only some of its rows will count, which ``choose_rows`` is told.
        """
        self._rows.clear()
        self._attended.clear()
        self._kept = positions
        self._growth = positions * self._keys_per_step
        self._continues = continues
        if append_only != self._append_only:
            self.reduce()
            self._append_only = append_only
        self._newest_key = newest_key
        if undecided:
            self._decided = len(self.chunks), len(self.previous_token)
        known, self._key_count = self._key_count, None
        self.expected_keys = known + self._growth if known is not None and append_only else None

    def observe(self, call: AttentionCall) -> None:
        """Keep what one layer's attention needs for its newest row."""
        keys = call.keys if call.key is None else self.keep_keys(call.position, call.key)
        needs_scores = call.weights is None
        self.keep_row(call.position, call.rows, keys, call.mask, call.options, needs_scores)

    def keep_keys(self, position: int, key: Tensor) -> int:
        """Keep one layer's keys ``[B, Hkv, K, D]`` in place of those before, and return ``K``.

        An outgrown cache is let go at once. Where K is ``expected_keys``, and no gradient is asked
        for, this only puts them into ``keys``.
        """
        if key.requires_grad:
            # Or the application's graph would be kept alive from step to step.
            key = key.detach()
        keys = key.size(2)
        # Of a layer that attends several times, the pending steps are of the last.
        previous = None if position in self._attended else self.keys.get(position)
        if previous is not None and keys != previous.size(2) + self._growth:
            # Not what was appended to: the pending steps can no longer be read from it.
            self.reduce()
        self._attended.add(position)
        self.keys[position] = key
        return keys

    def keep_row(
        self,
        position: int,
        given: Tensor,
        keys: int,
        mask: Any,
        options: dict[str, Any],
        needs_scores: bool,
    ) -> None:
        """Keep the newest queries of a layer whose keys are kept, or weights."""
        if given.requires_grad:
            given = given.detach()
        queries = given.size(2)
        # A copy where a view would keep the queries of a whole prompt alive.
        row = given if queries == 1 else given[:, :, -self._kept :].clone()
        self._rows.append((position, row, keys, mask, needs_scores, options, queries))

    def end_step(self, step: int) -> None:
        """Put the rows of all layers by, to be reduced together with those of other steps."""
        self._put_by(step)
        if not self._append_only:
            self.keys.clear()

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
        for position, key in self.keys.items():
            self.keys[position] = key[:, :, : key.shape[2] - rejected]
        if not self._append_only:
            self.keys.clear()

    def choose_rows(self, rows: Tensor) -> None:
        """Of a step whose rows were undecided, keep these ``[B]``."""
        for chunks, decided in self._all_decided():
            chunks[decided:] = [_rows_of(chunk, rows) for chunk in chunks[decided:]]
        self._decided = None
        self._join()

    def forget_undecided(self) -> None:
        """Forget a step whose rows were undecided and have not been chosen."""
        for chunks, decided in self._all_decided():
            del chunks[decided:]
        self._decided = None

    def _all_decided(self) -> list[tuple[list[Chunk], int]]:
        """The chunks of either kind, and how many of them have the rows that count."""
        kinds = (self.chunks, self.previous_token)
        return [] if self._decided is None else list(zip(kinds, self._decided, strict=True))

    def _put_by(self, step: int) -> None:
        groups = self._grouped()
        self._key_count = groups[0].key_count if len(groups) == 1 else None
        for layers in groups:
            positions = tuple(layers.positions)
            block = self._blocks.get(positions)
            if block is not None and not block.continues_with(layers):
                self._reduce(block)
                block = None
            if block is None:
                if positions not in self._queries:
                    self._queries[positions] = self._memory.for_steps()
                queries = self._queries[positions]
                block = Block(layers, self._most_steps, self._keys_per_step, queries)
                self._blocks[positions] = block
                self.heads |= dict.fromkeys(positions, layers.shape[1])
            block.add(step, layers)
        # Whoever compresses a cache does so behind the prompt, perhaps to as many keys.
        behind_prompt = step == 0 and self._keys_per_step > 0
        if behind_prompt or not self._append_only:
            self.reduce()

    def finish(self) -> None:
        """Reduce what is pending, and let go of the keys."""
        self.reduce()
        self._rows.clear()
        self.keys.clear()

    def _grouped(self) -> list[StepLayers]:
        """The step's rows, grouped by shape, mask and options."""
        rows, self._rows = self._rows, []
        groups: list[StepLayers] = []
        biases: dict[int, Tensor] = {}
        # Without a mask, a prompt sees itself only: the rest of a fixed-size cache is still empty.
        may_be_alone = self._keys_per_step > 0 and not (self._append_only or self._continues)
        # Of a layer that attends several times, the last is what its keys are of.
        newest = {row[0]: row for row in rows}
        for position, row, key_count, mask, needs_scores, given, queries in newest.values():
            options = self._options.get(position) or self._options_of(position, given)
            alone = may_be_alone and mask is None and queries > 1
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
                group = StepLayers(shape, mask, options, needs_scores, queries, keys)
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
    def _reduce(self, block: Block) -> None:
        mask = block.mask()
        entropies: list[Tensor] = []
        concentrations: list[Tensor] = []
        previous_token: list[Tensor] = []
        weighed_positions: list[int] = []
        for rows in block.weigh(self.keys, mask, self._memory):
            entropies.append(rows.entropy)
            concentrations.append(rows.concentration)
            positions = block.positions[rows.places]
            within = places_within(positions, self._weight_layers)
            if within.stop > 0 and self._newest_key is not NewestKey.UNKNOWN:
                weights = rows.weights[within]
                last = self._newest_key is NewestKey.LAST
                own = newest_token_weight(weights, mask, last_is_newest=last)
                previous_token.append(own)
                weighed_positions += positions[within]
        entropy = torch.cat(entropies).clamp_(min=0.0)
        normalized = (entropy / log_visible(mask, block.key_count)).clamp_(max=1.0)
        per_head = (entropy, normalized, torch.cat(concentrations))
        statistics = head_statistics(*(values.permute(3, 0, 1, 2) for values in per_head))
        steps = tuple(block.steps)
        self.chunks.append(Chunk(steps, tuple(block.positions), statistics))
        if previous_token:
            weights = torch.cat(previous_token, dim=2)
            self.previous_token.append(Chunk(steps, tuple(weighed_positions), weights))
        if self._decided is None:
            self._join()

    def _join(self) -> None:
        for chunks in (self.chunks, self.previous_token):
            if chunks:
                join_newest(chunks)
