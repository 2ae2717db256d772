"""Whether two records are of the same generation."""

from __future__ import annotations

import numpy as np

from corevital.record import GenerationRecord

COLUMNS = {
    "logits": ("entropy", "surprisal", "margin", "top_k_mass"),
    "hidden": ("mean", "std", "l2_norm", "max_abs", "last_layer_cosine", "lag_cosine"),
    "attention": ("entropy_mean", "entropy_min", "concentration_max", "concentration_min"),
    "prompt": ("surprisal", "layer_transformation", "basin"),
}


def differences(found: GenerationRecord, expected: GenerationRecord) -> list[str]:
    """What differs; times may, and the last digits of what was computed with other rows."""
    different = [
        name
        for name in ("model", "prompt_tokens", "finish_reason")
        if getattr(found, name) != getattr(expected, name)
    ]
    if not np.array_equal(found.token_ids, expected.token_ids):
        different.append(f"token_ids {found.token_ids} {expected.token_ids}")
    for part, names in COLUMNS.items():
        mine, other = getattr(found, part), getattr(expected, part)
        if mine is None or other is None:
            different += [part] if mine is not other else []
            continue
        different += [
            f"{part}.{name}"
            for name in names
            if not _close(getattr(mine, name), getattr(other, name))
        ]
    return different


def _close(mine: object, other: object) -> bool:
    if not isinstance(mine, np.ndarray) or not isinstance(other, np.ndarray):
        return mine is other
    if mine.shape != other.shape:
        return False
    return np.allclose(mine, other, rtol=1e-3, atol=1e-3, equal_nan=True)
