"""Mid-layer anomaly: hidden states that break down between the first and the last layers."""

from __future__ import annotations

import numpy as np

from corevital.record import HiddenColumns

MIN_LAYERS = 3


def mid_layer_anomaly(hidden: HiddenColumns, l2_multiplier: float) -> bool:
    """Whether a middle layer is broken at any step (published CoreVital heuristic).

    In layers ``L // 3`` to ``2 * L // 3`` of ``[S, L]``: NaN or Inf, or an L2 norm above
    ``l2_multiplier`` times the median norm of that step's first ``L // 3`` layers. False when
    fewer than three layers were observed, for then there are no thirds.
    """
    norms = np.where(np.isfinite(hidden.l2_norm), hidden.l2_norm, np.nan).astype(np.float64)
    seen = ~np.isnan(norms) | hidden.non_finite
    if np.count_nonzero(seen.any(axis=0)) < MIN_LAYERS:
        return False
    layers = norms.shape[1]
    first, middle = slice(0, layers // 3), slice(layers // 3, 2 * layers // 3)
    if hidden.non_finite[:, middle].any():
        return True
    missing = np.isnan(norms[:, first])
    comparable = norms[~missing.all(axis=1)]
    # np.nanmedian takes ten times as long.
    median = np.nanmedian if missing.any() else np.median
    reference = median(comparable[:, first], axis=1, keepdims=True)
    return bool(((comparable[:, middle] > l2_multiplier * reference) & (reference > 0)).any())
