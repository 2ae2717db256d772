"""The columns of a record, computed again by other means from the outputs of ``generate``.

Nothing here is shared with CoreVital: NumPy in float64, from ``logits``, ``hidden_states`` and
``attentions`` that an eager run returned.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

LAGS = 64


def logit_columns(outputs: Any, row: int, steps: int) -> dict[str, Array]:
    """Entropy, surprisal, margin and top-10 mass ``[S]`` of one sequence."""
    prompt = outputs.sequences.shape[1] - len(outputs.logits)
    columns: dict[str, list[float]] = {
        name: [] for name in ("entropy", "surprisal", "margin", "top_k_mass")
    }
    for step in range(steps):
        logits = outputs.logits[step][row].double().numpy()
        shifted = np.exp(logits - logits.max())
        p = shifted / shifted.sum()
        seen = p[p > 0]
        ranked = np.sort(p)[::-1]
        columns["entropy"].append(float(-(seen * np.log2(seen)).sum()))
        columns["surprisal"].append(float(-np.log2(p[outputs.sequences[row, prompt + step]])))
        columns["margin"].append(float(ranked[0] - ranked[1]))
        columns["top_k_mass"].append(float(ranked[:10].sum()))
    return {name: np.asarray(values) for name, values in columns.items()}


def hidden_columns(outputs: Any, row: int, steps: int) -> dict[str, Array]:
    """Statistics ``[S, L]`` of the newest token's state after each layer."""
    states = np.stack(
        [
            np.stack([layer[row, -1].double().numpy() for layer in outputs.hidden_states[step][1:]])
            for step in range(steps)
        ]
    )
    last = states[:, -1]
    unit = last / np.linalg.norm(last, axis=-1, keepdims=True)
    lags = np.full((steps, LAGS), np.nan)
    for lag in range(1, min(LAGS, steps - 1) + 1):
        lags[lag:, lag - 1] = (unit[lag:] * unit[:-lag]).sum(-1)
    return {
        "mean": states.mean(-1),
        "std": states.std(-1, ddof=1),
        "l2_norm": np.linalg.norm(states, axis=-1),
        "max_abs": np.abs(states).max(-1),
        "last_layer_cosine": lags[:, 0],
        "lag_cosine": lags,
    }


def attention_columns(outputs: Any, row: int, steps: int, visible: Any) -> dict[str, Array]:
    """Statistics ``[S, L]`` of the newest token's row; ``visible(step, keys)`` masks the keys."""
    columns: dict[str, list[list[float]]] = {}
    for step in range(steps):
        layers: dict[str, list[float]] = {}
        for weights in outputs.attentions[step]:
            rows = weights[row, :, -1].double().numpy()
            rows = rows[:, visible(step, rows.shape[-1])]
            for name, value in row_statistics(rows).items():
                layers.setdefault(name, []).append(value)
        for name, values in layers.items():
            columns.setdefault(name, []).append(values)
    return {name: np.asarray(values) for name, values in columns.items()}


def row_statistics(rows: Array) -> dict[str, float]:
    """Statistics over heads of the attention rows ``[H, K]`` of one query."""
    entropy = -(rows * np.log2(np.where(rows > 0, rows, 1.0))).sum(-1)
    normalized = entropy / np.log2(max(rows.shape[-1], 2))
    largest = rows.max(-1)
    return {
        "entropy_mean": float(entropy.mean()),
        "entropy_min": float(entropy.min()),
        "entropy_max": float(entropy.max()),
        "normalized_entropy_mean": float(normalized.mean()),
        "concentration_max": float(largest.max()),
        "concentration_min": float(largest.min()),
        "collapsed_heads": float((normalized < 0.03).sum()),
        "focused_heads": float((largest > 0.9).sum()),
    }


def prompt_columns(model: Any, input_ids: torch.Tensor) -> dict[str, Any]:
    """Surprisal, layer transformation, basin and weights of one unpadded prompt ``[1, P]``."""
    with torch.no_grad():
        outputs = model(
            input_ids, output_hidden_states=True, output_attentions=True, use_cache=False
        )
    log2 = torch.log_softmax(outputs.logits[0, :-1].double(), -1) / np.log(2)
    surprisal = -log2.gather(-1, input_ids[0, 1:, None]).squeeze(-1).numpy()
    states = [layer[0].double().numpy() for layer in outputs.hidden_states]
    transformation = [
        float(
            np.mean(1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))
        )
        for a, b in itertools.pairwise(states)
    ]
    weights = np.stack([layer[0].double().numpy() for layer in outputs.attentions])
    keys = weights.shape[-1]
    columns = weights.mean(-2)
    middle = columns[..., keys // 3 : 2 * keys // 3].sum(-1)
    return {
        "surprisal": surprisal,
        "layer_transformation": np.asarray(transformation),
        "basin": middle / (columns.sum(-1) - middle),
        "weights": weights,
    }
