"""Events of a record: one per step, one for the layers, one for the prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from corevital import semconv
from corevital.record import AttentionColumns, EncoderSummary, GenerationRecord
from corevital.telemetry.attributes import Value
from corevital.telemetry.handover import Delivery


@dataclass(frozen=True, slots=True)
class TimedEvent:
    """An event at a point in time, nanoseconds since the Unix epoch."""

    name: str
    time_ns: int
    attributes: Mapping[str, Value]


def step_events(delivery: Delivery, steps: list[int]) -> Iterator[TimedEvent]:
    """One ``corevital.step`` event for each of ``steps``."""
    record = delivery.record
    # Of Python's own numbers: taking one from an array costs ten times as long.
    columns = [(name, values[steps].tolist()) for name, values in _step_columns(record).items()]
    token_ids, times_ns = record.token_ids[steps].tolist(), record.step_time_ns[steps].tolist()
    bad_layers = _non_finite_layers(record)
    for place, step in enumerate(steps):
        attributes: dict[str, Value] = {
            semconv.STEP_INDEX: step,
            semconv.STEP_TOKEN_ID: token_ids[place],
        }
        if delivery.token_texts is not None:
            attributes[semconv.STEP_TOKEN_TEXT] = delivery.token_texts[step]
        for name, values in columns:
            if math.isfinite(values[place]):
                attributes[name] = values[place]
        if step in bad_layers:
            attributes[semconv.STEP_NON_FINITE_LAYERS] = bad_layers[step]
        yield TimedEvent(semconv.EVENT_STEP.name, times_ns[place], attributes)


def _step_columns(record: GenerationRecord) -> dict[str, NDArray[np.generic]]:
    """Columns ``[S]`` by attribute name; NaN where a step has no value."""
    columns: dict[str, NDArray[np.generic]] = {}
    if (logits := record.logits) is not None:
        columns[semconv.STEP_ENTROPY] = logits.entropy
        columns[semconv.STEP_PERPLEXITY] = logits.perplexity
        columns[semconv.STEP_SURPRISAL] = logits.surprisal
        columns[semconv.STEP_MARGIN] = logits.margin
        columns[semconv.STEP_TOP_K_MASS] = logits.top_k_mass
    if (hidden := record.hidden) is not None:
        columns[semconv.STEP_HIDDEN_L2_MEAN] = mean_over(1, hidden.l2_norm)
        columns[semconv.STEP_HIDDEN_L2_LAST] = hidden.l2_norm[:, -1]
        columns[semconv.STEP_HIDDEN_MAX_ABS] = largest_over_layers(hidden.max_abs)
        columns[semconv.STEP_HIDDEN_COSINE] = hidden.last_layer_cosine
    if (attention := record.attention) is not None:
        entropy = mean_over(1, attention.entropy_mean)
        columns[semconv.STEP_ATTENTION_ENTROPY_MEAN] = entropy
        columns[semconv.STEP_ATTENTION_ENTROPY_MIN] = -largest_over_layers(-attention.entropy_min)
        columns[semconv.STEP_ATTENTION_CONCENTRATION_MAX] = largest_over_layers(
            attention.concentration_max
        )
        columns[semconv.STEP_ATTENTION_COLLAPSED] = attention.collapsed_heads.sum(axis=1)
        columns[semconv.STEP_ATTENTION_FOCUSED] = attention.focused_heads.sum(axis=1)
    if (cross := record.cross_attention) is not None:
        columns[semconv.STEP_CROSS_ATTENTION_ENTROPY_MEAN] = mean_over(1, cross.entropy_mean)
        columns[semconv.STEP_CROSS_ATTENTION_CONCENTRATION_MAX] = largest_over_layers(
            cross.concentration_max
        )
        columns[semconv.STEP_CROSS_ATTENTION_COLLAPSED] = cross.collapsed_heads.sum(axis=1)
    return columns


def _non_finite_layers(record: GenerationRecord) -> dict[int, list[int]]:
    """Layers with NaN or Inf by step, for the steps that have any."""
    found: dict[int, set[int]] = {}
    for columns in (record.hidden, record.attention, record.cross_attention):
        if columns is not None:
            for step, place in np.argwhere(columns.non_finite).tolist():
                found.setdefault(step, set()).add(int(columns.layers[place]))
    return {step: sorted(layers) for step, layers in found.items()}


def layers_event(record: GenerationRecord) -> TimedEvent | None:
    """The ``corevital.layers`` event: per-layer statistics over all steps."""
    attributes: dict[str, Value] = {}
    if (hidden := record.hidden) is not None:
        mean = mean_over(0, hidden.l2_norm)
        deviation = np.sqrt(mean_over(0, (hidden.l2_norm - mean) ** 2))
        seen = np.isfinite(mean)
        attributes[semconv.LAYER_INDEX] = hidden.layers[seen].tolist()
        attributes[semconv.LAYER_L2_MEAN] = mean[seen].tolist()
        attributes[semconv.LAYER_L2_STD] = deviation[seen].tolist()
    if (attention := record.attention) is not None:
        layers, entropy, share = _by_layer(attention, record.steps_without_choice)
        attributes[semconv.LAYER_ATTENTION_INDEX] = layers
        attributes[semconv.LAYER_ATTENTION_ENTROPY] = entropy
        attributes[semconv.LAYER_COLLAPSED_SHARE] = share
    if (cross := record.cross_attention) is not None:
        layers, entropy, share = _by_layer(cross)
        attributes[semconv.LAYER_CROSS_ATTENTION_INDEX] = layers
        attributes[semconv.LAYER_CROSS_ATTENTION_ENTROPY] = entropy
        attributes[semconv.LAYER_CROSS_ATTENTION_COLLAPSED_SHARE] = share
    if not attributes:
        return None
    return TimedEvent(semconv.EVENT_LAYERS.name, record.end_time_ns, attributes)


def _by_layer(
    attention: AttentionColumns, without_choice: int = 0
) -> tuple[list[int], list[float], list[float]]:
    """Observed layers, and over steps their mean entropy and share of collapsed heads.

    At the first ``without_choice`` steps there was one key to see, and no head could but look at
    it: unless there are no others, they do not count in the share.
    """
    entropy = mean_over(0, attention.entropy_mean)
    share = attention.collapsed_heads / attention.heads
    share[~np.isfinite(attention.entropy_mean)] = np.nan
    if without_choice < len(share):
        share[:without_choice] = np.nan
    share = mean_over(0, share)
    seen = np.isfinite(entropy)
    return attention.layers[seen].tolist(), entropy[seen].tolist(), share[seen].tolist()


def prompt_event(record: GenerationRecord) -> TimedEvent | None:
    """The ``corevital.prompt`` event: per-layer statistics of the prompt."""
    prompt = record.prompt
    columns: dict[str, NDArray[np.floating]] = {}
    if prompt.layer_transformation is not None:
        columns[semconv.PROMPT_TRANSFORMATION] = prompt.layer_transformation
    if prompt.basin is not None:
        columns[semconv.PROMPT_BASIN] = mean_over(1, prompt.basin)
    if record.encoder is not None:
        columns |= _encoder_columns(record.encoder, [len(values) for values in columns.values()])
    if not columns or not record.steps:
        return None
    seen = np.isfinite(np.stack(list(columns.values()))).all(axis=0)
    attributes: dict[str, Value] = {name: values[seen].tolist() for name, values in columns.items()}
    attributes[semconv.LAYER_INDEX] = np.flatnonzero(seen).tolist()
    return TimedEvent(semconv.EVENT_PROMPT.name, int(record.step_time_ns[0]), attributes)


def _encoder_columns(
    encoder: EncoderSummary, lengths: Sequence[int]
) -> dict[str, NDArray[np.floating]]:
    """What an encoder's layers showed, as long as the other columns; NaN where nothing."""
    columns = {}
    if (hidden := encoder.hidden) is not None:
        columns[semconv.ENCODER_L2_VALUES] = (hidden.layers, hidden.l2_norm)
    if (attention := encoder.attention) is not None:
        columns[semconv.ENCODER_ENTROPY_VALUES] = (attention.layers, attention.entropy_mean)
    length = max([*lengths, *(int(layers.max()) + 1 for layers, _ in columns.values())], default=0)
    placed: dict[str, NDArray[np.floating]] = {}
    for name, (layers, values) in columns.items():
        placed[name] = np.full(length, np.nan, dtype=np.float32)
        placed[name][layers] = values
    return placed


def mean_over(axis: int, values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Mean of the finite values along an axis; NaN where there is none."""
    finite = np.isfinite(values)
    count = finite.sum(axis=axis)
    total = np.where(finite, values, 0.0).sum(axis=axis, dtype=np.float64)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def largest_over_layers(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Largest finite value of each step; NaN where there is none."""
    largest = np.where(np.isfinite(values), values, -np.inf).max(axis=1)
    return np.where(np.isfinite(largest), largest, np.nan)
