"""Small records made by hand: only what a test is about is observed in them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from corevital.record import (
    AttentionColumns,
    Captured,
    CaptureMode,
    CaptureReport,
    Floats,
    GenerationRecord,
    HiddenColumns,
    LogitColumns,
    ModelDescription,
    PromptColumns,
)


def floats(values: npt.ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float32)


def unobserved(*shape: int) -> Floats:
    return np.full(shape, np.nan, dtype=np.float32)


def logit_columns(
    *,
    entropy: npt.ArrayLike | None = None,
    surprisal: npt.ArrayLike | None = None,
    margin: npt.ArrayLike | None = None,
    top_k_mass: npt.ArrayLike | None = None,
) -> LogitColumns:
    """Columns that are not given are not observed at any step."""
    given = [c for c in (entropy, surprisal, margin, top_k_mass) if c is not None]
    nothing = unobserved(len(floats(given[0])) if given else 0)
    return LogitColumns(
        entropy=nothing if entropy is None else floats(entropy),
        surprisal=nothing if surprisal is None else floats(surprisal),
        margin=nothing if margin is None else floats(margin),
        top_k_mass=nothing if top_k_mass is None else floats(top_k_mass),
    )


def hidden_columns(
    l2_norm: npt.ArrayLike,
    *,
    layers: npt.ArrayLike | None = None,
    non_finite: npt.ArrayLike | None = None,
    last_layer_cosine: npt.ArrayLike | None = None,
    lag_cosine: npt.ArrayLike | None = None,
) -> HiddenColumns:
    """``l2_norm`` is ``[S, L]``; layers count from zero unless given."""
    norms = floats(l2_norm)
    steps, width = norms.shape
    nothing = unobserved(steps, width)
    return HiddenColumns(
        layers=np.asarray(range(width) if layers is None else layers, dtype=np.int64),
        mean=nothing,
        std=nothing,
        l2_norm=norms,
        max_abs=nothing,
        clip_fraction=nothing,
        non_finite=np.zeros(norms.shape, dtype=bool)
        if non_finite is None
        else np.asarray(non_finite, dtype=bool),
        last_layer_cosine=unobserved(steps)
        if last_layer_cosine is None
        else floats(last_layer_cosine),
        lag_cosine=None if lag_cosine is None else np.asarray(lag_cosine, dtype=np.float16),
    )


def attention_columns(
    collapsed_heads: npt.ArrayLike,
    *,
    heads: int | npt.ArrayLike = 10,
    layers: npt.ArrayLike | None = None,
    observed: npt.ArrayLike = True,
    non_finite: npt.ArrayLike | None = None,
) -> AttentionColumns:
    """``collapsed_heads`` is ``[S, L]``; entropies are NaN where not ``observed``."""
    collapsed = np.asarray(collapsed_heads, dtype=np.int64)
    width = collapsed.shape[1]
    nothing = unobserved(*collapsed.shape)
    seen = np.broadcast_to(np.asarray(observed, dtype=bool), collapsed.shape)
    return AttentionColumns(
        layers=np.asarray(range(width) if layers is None else layers, dtype=np.int64),
        heads=np.broadcast_to(np.asarray(heads, dtype=np.int64), (width,)),
        entropy_mean=floats(np.where(seen, 1.0, np.nan)),
        entropy_min=nothing,
        entropy_max=nothing,
        normalized_entropy_mean=nothing,
        concentration_max=nothing,
        concentration_min=nothing,
        collapsed_heads=collapsed,
        focused_heads=np.zeros_like(collapsed),
        non_finite=np.zeros(collapsed.shape, dtype=bool)
        if non_finite is None
        else np.asarray(non_finite, dtype=bool),
    )


def record(
    *,
    logits: LogitColumns | None = None,
    hidden: HiddenColumns | None = None,
    attention: AttentionColumns | None = None,
    basin: npt.ArrayLike | None = None,
) -> GenerationRecord:
    """A record whose other parts were not captured."""
    steps = max(
        0 if logits is None else len(logits.entropy),
        0 if hidden is None else len(hidden.l2_norm),
        0 if attention is None else len(attention.collapsed_heads),
    )
    return GenerationRecord(
        model=ModelDescription(name="model", family="gpt2", architecture="GPT2LMHeadModel"),
        capture=CaptureReport(
            mode=CaptureMode.FULL,
            logits=Captured(logits is not None),
            hidden=Captured(hidden is not None),
            attention=Captured(attention is not None),
            prompt=Captured(basin is not None),
        ),
        prompt_tokens=3,
        token_ids=np.arange(steps),
        step_time_ns=np.arange(steps),
        start_time_ns=0,
        end_time_ns=steps,
        logits=logits,
        hidden=hidden,
        attention=attention,
        prompt=PromptColumns(basin=None if basin is None else floats(basin)),
    )
