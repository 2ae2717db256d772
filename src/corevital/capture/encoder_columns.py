"""Turns what an encoder left on the device into parts of a record, for every sequence."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from corevital.capture.encoder import EncoderObserver
from corevital.capture.prompt_columns import by_layer, sparse_weights
from corevital.capture.transfer import to_host
from corevital.record import EncoderAttention, EncoderHidden, EncoderSummary, PromptColumns


class EncoderColumns:
    """What ``encoder`` showed, for each of ``rows`` generated sequences.

    The encoder sees a prompt once; where several sequences are generated from it, they are next to
    each other.
    """

    def __init__(self, encoder: EncoderObserver, rows: int) -> None:
        self._encoder = encoder
        self._rows = rows
        answers = max(rows // encoder.rows, 1) if encoder.rows else 1
        self._prompts = np.arange(rows) // answers

    def prompt_tokens(self) -> NDArray[np.int64]:
        """Tokens of every sequence's prompt, or where it is no text, positions; ``[B]``."""
        encoder = self._encoder
        if encoder.input_ids is not None:
            rows, length = encoder.input_ids.shape
            counts = _counts(encoder.input_mask, rows, length)
            return counts[self._prompts]
        return _counts(encoder.output_mask, self._rows, encoder.output_positions or 0)

    def prompt_ids(self) -> tuple[NDArray[np.int64], ...]:
        """Every sequence's prompt without padding; empty where it is not made of tokens."""
        encoder = self._encoder
        if encoder.input_ids is None:
            return (np.empty(0, dtype=np.int64),) * self._rows
        ids = encoder.input_ids.cpu().numpy()
        mask = encoder.input_mask
        if mask is None or mask.shape != encoder.input_ids.shape:
            prompts = list(ids)
        else:
            seen = mask.bool().cpu().numpy()
            prompts = [row[visible] for row, visible in zip(ids, seen, strict=True)]
        return tuple(prompts[prompt] for prompt in self._prompts)

    def summaries(self) -> tuple[EncoderSummary, ...]:
        """The encoder's statistics, by sequence."""
        hidden, attention = self._hidden(), self._attention()
        return tuple(EncoderSummary(hidden[at], attention[at]) for at in self._prompts)

    def _hidden(self) -> list[EncoderHidden | None]:
        statistics = _stacked(self._encoder.hidden.by_layer)
        if statistics is None:
            return [None] * self._rows
        layers, values = statistics
        return [
            EncoderHidden(layers, mean, std, l2_norm, max_abs, clip_fraction, non_finite > 0)
            for mean, std, l2_norm, max_abs, clip_fraction, non_finite in values.transpose(2, 0, 1)
        ]

    def _attention(self) -> list[EncoderAttention | None]:
        encoder = self._encoder
        rows = encoder.attention_rows
        statistics = None if rows is None else _stacked(rows.by_layer)
        if statistics is None or encoder.attention_maps is None:
            return [None] * self._rows
        layers, values = statistics
        basin = encoder.attention_maps.basin
        heads = np.asarray([basin[int(layer)].shape[-1] for layer in layers], dtype=np.int64)
        return [
            EncoderAttention(
                layers,
                heads,
                mean,
                least,
                most,
                normalized,
                largest,
                smallest,
                np.nan_to_num(collapsed).astype(np.int64),
                np.nan_to_num(focused).astype(np.int64),
                np.isnan(mean),
            )
            for mean, least, most, normalized, largest, smallest, collapsed, focused in (
                values.transpose(2, 0, 1)
            )
        ]

    def prompt(self) -> tuple[PromptColumns, ...]:
        """Prompt telemetry of every sequence; an encoder predicts no token, so no surprisal."""
        encoder = self._encoder
        transformation = basin = None
        if encoder.transformation is not None:
            transformation = by_layer(encoder.transformation.by_layer, encoder.count)
        sparse = None
        if encoder.attention_maps is not None and encoder.valid is not None:
            basin = by_layer(encoder.attention_maps.basin, encoder.count)
            sparse = sparse_weights(encoder.attention_maps.sparse, encoder.valid)
        return tuple(
            PromptColumns(
                layer_transformation=None if transformation is None else transformation[:, row],
                basin=None if basin is None else basin[:, row],
                sparse=None if sparse is None else sparse[row],
            )
            for row in self._prompts
        )


def _counts(mask: Tensor | None, rows: int, length: int) -> NDArray[np.int64]:
    """Positions without padding, ``[B]``; a mask of another shape says nothing of them."""
    if mask is None or mask.shape != (rows, length):
        return np.full(rows, length)
    counts: NDArray[np.int64] = mask.bool().sum(-1).cpu().numpy()
    return counts


def _stacked(
    statistics: dict[int, Tensor],
) -> tuple[NDArray[np.int64], NDArray[np.float32]] | None:
    """Layer positions ``[L]`` and their statistics ``[k, L, B]``; ``None`` without any."""
    if not statistics:
        return None
    layers = sorted(statistics)
    values = np.stack([to_host(statistics[layer]) for layer in layers], axis=1)
    return np.asarray(layers, dtype=np.int64), values
