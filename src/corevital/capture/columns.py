"""Turns what a run left on the device into the columns of a record, one set per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corevital.capture.attention import AttentionReducer
from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import Chunk
from corevital.capture.encoder_columns import EncoderColumns
from corevital.capture.hidden import HiddenReducer
from corevital.capture.prefill import Prefill
from corevital.capture.prompt_columns import by_layer, sparse_weights
from corevital.capture.run import GenerationRun
from corevital.capture.transfer import to_host
from corevital.record import (
    AttentionColumns,
    EncoderSummary,
    HiddenColumns,
    LogitColumns,
    PreviousTokenWeight,
    PromptColumns,
)

_LOGIT_TOLERANCE: Final = 0.02


@dataclass(frozen=True, slots=True)
class LayerColumns:
    """Statistics ``values`` ``[k, S, L, B]`` at ``layers`` ``[L]``.

    ``observed`` ``[S, L]`` tells a value that is NaN from one that was never taken.
    """

    layers: NDArray[np.int64]
    values: NDArray[np.float32]
    observed: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class RunColumns:
    """The columns of all sequences of a run, on the host.

    Arrays carry the batch as their last axis: ``logits`` ``[4, S, B]``, ``last_layer_cosine``
    ``[S, B]``; but ``lag_cosine`` is ``[S, B, LAGS]``, ``token_ids`` ``[B, S]`` and
    ``prompt_tokens`` ``[B]``. ``prompt_ids`` has ``[P]`` for each sequence, without padding.
    ``state_rows`` ``[B]`` is the row of each sequence in what the layers showed: ``B`` stands for
    another number there where several sequences are decoded from the same states.
    ``lengths`` ``[B]`` are the steps of each sequence and ``tied`` ``[B]`` tells whether they are
    those of its tokens, where a run finds that out; ``None`` otherwise.
    """

    token_ids: NDArray[np.int64]
    prompt_tokens: NDArray[np.int64]
    prompt_ids: tuple[NDArray[np.int64], ...]
    logits: NDArray[np.float32] | None
    hidden: LayerColumns | None
    last_layer_cosine: NDArray[np.float32] | None
    lag_cosine: NDArray[np.float16] | None
    attention: LayerColumns | None
    attention_heads: NDArray[np.int64]
    previous_token: LayerColumns | None
    prompt: tuple[PromptColumns, ...]
    state_rows: NDArray[np.int64]
    lengths: NDArray[np.int64] | None = None
    tied: NDArray[np.bool_] | None = None
    cross_attention: LayerColumns | None = None
    cross_attention_heads: NDArray[np.int64] | None = None
    encoder: tuple[EncoderSummary, ...] | None = None

    def logit_columns(self, row: int, steps: int) -> LogitColumns | None:
        """Logit columns of one sequence's first ``steps`` steps."""
        if self.logits is None:
            return None
        return LogitColumns(*_of_row(self.logits, row, steps))

    def hidden_columns(self, row: int, steps: int) -> HiddenColumns | None:
        """Hidden-state columns of one sequence's first ``steps`` steps."""
        if self.hidden is None or self.last_layer_cosine is None:
            return None
        row = int(self.state_rows[row])
        statistics = _of_row(self.hidden.values, row, steps)
        mean, std, l2_norm, max_abs, clip_fraction = statistics[:5]
        return HiddenColumns(
            self.hidden.layers,
            mean,
            std,
            l2_norm,
            max_abs,
            clip_fraction,
            non_finite=statistics[5] > 0,
            last_layer_cosine=self.last_layer_cosine[:steps, row],
            lag_cosine=None if self.lag_cosine is None else self.lag_cosine[:steps, row],
        )

    def attention_columns(self, row: int, steps: int) -> AttentionColumns | None:
        """Attention columns of one sequence's first ``steps`` steps."""
        if self.attention is None:
            return None
        row = int(self.state_rows[row])
        weight = self._previous_token_weight(row, steps)
        return _attention_columns(self.attention, self.attention_heads, row, steps, weight)

    def cross_attention_columns(self, row: int, steps: int) -> AttentionColumns | None:
        """Cross-attention columns of one sequence's first ``steps`` steps."""
        if self.cross_attention is None or self.cross_attention_heads is None:
            return None
        row = int(self.state_rows[row])
        return _attention_columns(self.cross_attention, self.cross_attention_heads, row, steps)

    def _previous_token_weight(self, row: int, steps: int) -> PreviousTokenWeight | None:
        if self.previous_token is None:
            return None
        by_head = self.previous_token.values[:, :steps, :, row]
        values = np.ascontiguousarray(by_head.transpose(1, 2, 0))
        return PreviousTokenWeight(self.previous_token.layers, values)


def _of_row(values: NDArray[np.float32], row: int, steps: int) -> NDArray[np.float32]:
    """One row of ``[k, S, ..., B]``, in memory of its own.

    Whoever keeps a record would otherwise keep those of all rows, and whatever is read of it would
    be as far apart as they are many.
    """
    return np.ascontiguousarray(values[:, :steps, ..., row])


def _attention_columns(
    attention: LayerColumns,
    heads: NDArray[np.int64],
    row: int,
    steps: int,
    previous_token_weight: PreviousTokenWeight | None = None,
) -> AttentionColumns:
    statistics = _of_row(attention.values, row, steps)
    entropy_mean, entropy_min, entropy_max, normalized, largest, smallest = statistics[:6]
    return AttentionColumns(
        attention.layers,
        heads,
        entropy_mean,
        entropy_min,
        entropy_max,
        normalized,
        largest,
        smallest,
        collapsed_heads=np.nan_to_num(statistics[6]).astype(np.int64),
        focused_heads=np.nan_to_num(statistics[7]).astype(np.int64),
        non_finite=attention.observed[:steps] & np.isnan(statistics[0]),
        previous_token_weight=previous_token_weight,
    )


def _heads(reducer: AttentionReducer, columns: LayerColumns | None) -> NDArray[np.int64]:
    layers = columns.layers if columns is not None else ()
    return np.asarray([reducer.heads[int(layer)] for layer in layers], dtype=np.int64)


@unaffected_by_autocast
def collect(run: GenerationRun) -> RunColumns | None:
    """Bring a finished run's results to the host; ``None`` when no token was accepted."""
    if run.input_ids is None or run.steps == 0:
        return None
    ids = run.input_ids.cpu().numpy()
    logits = run.logits.result()
    if logits is not None and logits.shape[1] < run.steps:
        # Observing a step failed: of a record there are those of every step or of none.
        logits = None
    return collect_rows(
        run,
        ids[:, : run.prompt_length],
        ids[:, run.prompt_length :],
        None if logits is None else to_host(logits)[:, : run.steps],
    )


def collect_rows(
    run: GenerationRun,
    prompt_ids: NDArray[np.int64],
    token_ids: NDArray[np.int64],
    logits: NDArray[np.float32] | None,
) -> RunColumns:
    """The columns of the rows of a run's forward passes.

    Args:
        run: a finished run.
        prompt_ids: ``[B, P]``, padding included.
        token_ids: ``[B, S]``.
        logits: ``[4, S, B]``.
    """
    rows, prompt_length = prompt_ids.shape
    hidden = _scatter(run.hidden.chunks, run.steps)
    attention = _scatter(run.attention.chunks, run.steps)
    cross_attention = _scatter(run.cross_attention.chunks, run.steps)
    lag_cosine = _cosines(run.hidden, run.hidden.lag_cosines, run.steps)
    encoder = None if run.encoder is None else EncoderColumns(run.encoder, rows)
    return RunColumns(
        token_ids=token_ids,
        prompt_tokens=(
            _prompt_tokens(run, rows, prompt_length) if encoder is None else encoder.prompt_tokens()
        ),
        prompt_ids=_prompt_ids(run, prompt_ids) if encoder is None else encoder.prompt_ids(),
        logits=logits,
        hidden=hidden,
        last_layer_cosine=_cosines(run.hidden, run.hidden.last_layer_cosines, run.steps),
        lag_cosine=None if lag_cosine is None else lag_cosine.astype(np.float16),
        attention=attention,
        attention_heads=_heads(run.attention, attention),
        previous_token=_scatter(run.attention.previous_token, run.steps),
        prompt=_prompt_columns(run, rows) if encoder is None else encoder.prompt(),
        state_rows=run.state_rows(rows),
        lengths=run.lengths(token_ids),
        cross_attention=cross_attention,
        cross_attention_heads=_heads(run.cross_attention, cross_attention),
        encoder=None if encoder is None else encoder.summaries(),
    )


def _prompt_tokens(run: GenerationRun, rows: int, length: int) -> NDArray[np.int64]:
    """Prompt tokens of every sequence, padding not counted."""
    if run.prompt_mask is None or run.prompt_mask.shape[1] < length:
        # The first forward pass may get only what a given cache does not have.
        return np.full(rows, length)
    counts: NDArray[np.int64] = run.prompt_mask.sum(-1).cpu().numpy()
    return counts


def _prompt_ids(run: GenerationRun, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """Every sequence's prompt without padding."""
    mask = None if run.prompt_mask is None else run.prompt_mask.bool().cpu().numpy()
    if mask is None or mask.shape != ids.shape:
        return tuple(ids)
    return tuple(row[seen] for row, seen in zip(ids, mask, strict=True))


def _scatter(chunks: Sequence[Chunk], steps: int) -> LayerColumns | None:
    """Place chunks of some steps at some layers in arrays over all of them.

    Where layers have fewer statistics than others, for instance heads, the rest is NaN.
    """
    if not chunks:
        return None
    layers = sorted({position for chunk in chunks for position in chunk.positions})
    kinds = max(chunk.statistics.shape[0] for chunk in chunks)
    rows = chunks[0].statistics.shape[3]
    values = np.full((kinds, steps, len(layers), rows), np.nan, dtype=np.float32)
    observed = np.zeros((steps, len(layers)), dtype=bool)
    for positions in {chunk.positions for chunk in chunks}:
        same = [chunk for chunk in chunks if chunk.positions == positions]
        arrived = to_host(torch.cat([chunk.statistics for chunk in same], dim=1))
        at_steps = np.asarray([step for chunk in same for step in chunk.steps])
        arrived, at_steps = arrived[:, at_steps < steps], at_steps[at_steps < steps]
        at_layers = np.searchsorted(layers, positions)
        values[: len(arrived), at_steps[:, None], at_layers] = arrived
        observed[at_steps[:, None], at_layers] = True
    return LayerColumns(np.asarray(layers, dtype=np.int64), values, observed)


def _cosines(
    hidden: HiddenReducer, chunks: Sequence[Tensor], steps: int
) -> NDArray[np.float32] | None:
    """The cosines of all chunks over all steps, ``[S, ...]``."""
    if not chunks:
        return None
    arrived = to_host(torch.cat(list(chunks)))
    cosines = np.full((steps, *arrived.shape[1:]), np.nan, dtype=np.float32)
    at_steps = np.asarray([step for chunk in hidden.chunks for step in chunk.steps])
    cosines[at_steps[at_steps < steps]] = arrived[at_steps < steps]
    return cosines


def _prompt_columns(run: GenerationRun, rows: int) -> tuple[PromptColumns, ...]:
    prefill = run.prefill
    if prefill is None:
        return tuple(PromptColumns() for _ in range(rows))
    counts = prefill.valid.sum(-1).tolist()
    surprisal = _checked_surprisal(run, prefill)
    layers = len(run.layers.layers) if run.layers is not None else 0
    transformation = by_layer(prefill.transformation.by_layer, layers)
    basin = by_layer(prefill.attention_maps.basin, layers)
    sparse = sparse_weights(prefill.attention_maps.sparse, prefill.valid)
    prompts = (
        PromptColumns(
            surprisal=None if surprisal is None else surprisal[row, 1 - count :][: count - 1],
            layer_transformation=None if transformation is None else transformation[:, row],
            basin=None if basin is None else basin[:, row],
            sparse=sparse[row],
        )
        for row, count in enumerate(counts)
    )
    return tuple(prompt for prompt in prompts for _ in range(prefill.answers))


def _checked_surprisal(run: GenerationRun, prefill: Prefill) -> NDArray[np.float32] | None:
    """Surprisal, unless the model's logits are more than the output head's product."""
    if prefill.surprisal is None or prefill.surprisal_error is None:
        return None
    if not float(prefill.surprisal_error) <= _LOGIT_TOLERANCE:
        return None
    return to_host(prefill.surprisal)
