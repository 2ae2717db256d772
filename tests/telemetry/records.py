"""Records in which every part is observed, and ways to take parts away."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from corevital.record import (
    LAGS,
    AttentionColumns,
    Captured,
    CaptureMode,
    CaptureReport,
    Floats,
    GenerationRecord,
    HiddenColumns,
    LogitColumns,
    ModelDescription,
    PreviousTokenWeight,
    PromptColumns,
    SparseAttention,
)

SECOND = 10**9
START = 1_700_000_000 * SECOND
LAYERS = 3
HEADS = 4
WIDTH = 16


def column(*shape: int, seed: int, low: float = 0.1, high: float = 6.0) -> Floats:
    return np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32)


def logits(steps: int) -> LogitColumns:
    return LogitColumns(
        entropy=column(steps, seed=1),
        surprisal=column(steps, seed=2),
        margin=column(steps, seed=3, high=0.5),
        top_k_mass=column(steps, seed=4, low=0.95, high=1.0),
    )


def hidden(steps: int) -> HiddenColumns:
    shape = (steps, LAYERS)
    mean, std = column(*shape, seed=5), column(*shape, seed=6)
    return HiddenColumns(
        layers=np.arange(LAYERS),
        mean=mean,
        std=std,
        l2_norm=np.sqrt(WIDTH * mean**2 + (WIDTH - 1) * std**2),
        max_abs=mean + std,
        clip_fraction=np.zeros(shape, dtype=np.float32),
        non_finite=np.zeros(shape, dtype=bool),
        last_layer_cosine=column(steps, seed=9, high=0.9),
        lag_cosine=column(steps, LAGS, seed=20, high=0.9).astype(np.float16),
    )


def attention(steps: int) -> AttentionColumns:
    shape = (steps, LAYERS)
    return AttentionColumns(
        layers=np.arange(LAYERS),
        heads=np.full(LAYERS, HEADS),
        entropy_mean=column(*shape, seed=10, low=2.0, high=4.0),
        entropy_min=column(*shape, seed=11, high=2.0),
        entropy_max=column(*shape, seed=12, low=4.0),
        normalized_entropy_mean=column(*shape, seed=13, high=1.0),
        concentration_max=column(*shape, seed=14, low=0.92, high=1.0),
        concentration_min=column(*shape, seed=15, high=0.9),
        collapsed_heads=np.ones(shape, dtype=np.int64),
        focused_heads=np.full(shape, 2, dtype=np.int64),
        non_finite=np.zeros(shape, dtype=bool),
        previous_token_weight=PreviousTokenWeight(
            layers=np.arange(1, LAYERS),
            values=column(steps, LAYERS - 1, HEADS, seed=19, high=1.0),
        ),
    )


def prompt(tokens: int) -> PromptColumns:
    none = np.empty(0, dtype=np.int32)
    return PromptColumns(
        surprisal=column(tokens - 1, seed=16),
        layer_transformation=column(LAYERS, seed=17, high=1.0),
        basin=column(LAYERS, HEADS, seed=18, high=1.0),
        sparse=SparseAttention(
            threshold=0.01,
            layer=none.astype(np.int16),
            head=none.astype(np.int16),
            query=none,
            key=none,
            weight=none.astype(np.float32),
            total=77,
        ),
    )


def full_record(steps: int = 8) -> GenerationRecord:
    """A token every quarter of a second, the first after one second, the end after the last."""
    seen = Captured(True)
    return GenerationRecord(
        model=ModelDescription("model", "llama", "LlamaForCausalLM", LAYERS),
        capture=CaptureReport(CaptureMode.FULL, seen, seen, seen, seen),
        prompt_tokens=6,
        token_ids=np.arange(100, 100 + steps),
        step_time_ns=START + SECOND + np.arange(steps) * SECOND // 4,
        start_time_ns=START,
        end_time_ns=START + SECOND + steps * SECOND // 4,
        logits=logits(steps),
        hidden=hidden(steps),
        attention=attention(steps),
        prompt=prompt(6),
        finish_reason="length",
    )


def without(record: GenerationRecord, part: str) -> GenerationRecord:
    """The record as it is when ``logits``, ``hidden`` or ``attention`` was not observed."""
    nothing: dict[str, Any] = {part: None}
    return replace(record, **nothing)
