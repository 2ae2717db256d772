"""Layer blame: which layers misbehaved, and how."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from corevital.assess.observed import column_mean, column_std, mean, observed, std
from corevital.record import AttentionColumns, Bools, GenerationRecord, HiddenColumns, Ints

NON_FINITE_SEVERITY = 1.0
COLLAPSED_STEPS_SHARE = 0.5
COLLAPSED_SEVERITY = 0.4
OUTLIER_DEVIATIONS = 2.5
OUTLIER_SEVERITY = 0.5
UNSTABLE_VARIATION = 0.5
MIN_UNSTABLE_STEPS = 3
UNSTABLE_SEVERITY = 0.3


@dataclass(frozen=True, slots=True)
class LayerBlame:
    """One layer's faults: its index in the model, the worst severity in [0, 1], every reason."""

    layer: int
    severity: float
    reasons: tuple[str, ...]


class _Fault(NamedTuple):
    layer: int
    severity: float
    reason: str


def layer_blame(record: GenerationRecord) -> tuple[LayerBlame, ...]:
    """Layers at fault in ascending order (published CoreVital heuristic).

    A layer is blamed for NaN or Inf; for collapsed heads in more than half of its steps; for a
    mean L2 norm far above those of the other layers; for an L2 norm that varies a lot over
    steps. Layers and steps that were not observed count for nothing. Of an encoder-decoder, these
    are the decoder's layers.
    """
    faults: defaultdict[int, list[_Fault]] = defaultdict(list)
    for fault in _faults(record):
        faults[fault.layer].append(fault)
    return tuple(
        LayerBlame(layer, max(fault.severity for fault in found), tuple(f.reason for f in found))
        for layer, found in sorted(faults.items())
    )


def _faults(record: GenerationRecord) -> Iterator[_Fault]:
    if (hidden := record.hidden) is not None:
        yield from _non_finite("hidden state", hidden.layers, hidden.non_finite)
        yield from _outlying_norm(hidden)
        yield from _unstable_norm(hidden)
    if (attention := record.attention) is not None:
        yield from _non_finite("attention", attention.layers, attention.non_finite)
        yield from _collapsed(attention, record.steps_without_choice)
    if (cross := record.cross_attention) is not None:
        yield from _non_finite("cross-attention", cross.layers, cross.non_finite)


def _non_finite(what: str, layers: Ints, non_finite: Bools) -> Iterator[_Fault]:
    counts = non_finite.sum(axis=0)
    for i in np.flatnonzero(counts):
        reason = f"{what} has NaN or Inf in {counts[i]} of {len(non_finite)} steps"
        yield _Fault(int(layers[i]), NON_FINITE_SEVERITY, reason)


def _collapsed(attention: AttentionColumns, without_choice: int) -> Iterator[_Fault]:
    seen = np.isfinite(attention.entropy_mean)
    seen[:without_choice] = False
    steps = seen.sum(axis=0)
    collapsed = (seen & (attention.collapsed_heads > 0)).sum(axis=0)
    for i in np.flatnonzero(collapsed > COLLAPSED_STEPS_SHARE * steps):
        reason = f"collapsed heads in {collapsed[i]} of {steps[i]} steps"
        yield _Fault(int(attention.layers[i]), COLLAPSED_SEVERITY, reason)


def _outlying_norm(hidden: HiddenColumns) -> Iterator[_Fault]:
    norms = column_mean(hidden.l2_norm)
    over_layers = observed(norms)
    centre, spread = mean(over_layers), std(over_layers)
    for i in np.flatnonzero(norms - centre > OUTLIER_DEVIATIONS * spread):
        deviations = (norms[i] - centre) / spread
        reason = (
            f"mean L2 norm {norms[i]:.4g} is {deviations:.1f} standard deviations "
            f"above the mean over layers, {centre:.4g}"
        )
        yield _Fault(int(hidden.layers[i]), OUTLIER_SEVERITY, reason)


def _unstable_norm(hidden: HiddenColumns) -> Iterator[_Fault]:
    steps = np.isfinite(hidden.l2_norm).sum(axis=0)
    norms, spread = column_mean(hidden.l2_norm), column_std(hidden.l2_norm)
    unstable = (steps >= MIN_UNSTABLE_STEPS) & (norms > 0) & (spread > UNSTABLE_VARIATION * norms)
    for i in np.flatnonzero(unstable):
        reason = (
            f"L2 norm varies over {steps[i]} steps by {spread[i] / norms[i]:.2f} of its mean, "
            f"{norms[i]:.4g}"
        )
        yield _Fault(int(hidden.layers[i]), UNSTABLE_SEVERITY, reason)
