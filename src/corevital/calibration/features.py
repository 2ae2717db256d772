"""A record as named numbers, for a model that learns which records belong to failures.

Features come in groups, each from one part of the record. A group is there as a whole or not at
all: a feature is never made up for what was not observed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from corevital.calibration.estimators import RAUQ, logarithms
from corevital.record import AttentionColumns, GenerationRecord, HiddenColumns

LOGITS: Final = "logits"
LAST_LAYER: Final = "last_layer"
HIDDEN: Final = "hidden"
ATTENTION: Final = "attention"
PROMPT: Final = "prompt"
GROUPS: Final = (LOGITS, LAST_LAYER, HIDDEN, ATTENTION, PROMPT)
"""In the order in which captures have them: a summary has the first two."""

_THIRDS: Final = ("early", "middle", "late")
_RECENT_PROMPT_TOKENS: Final = 20

Values = NDArray[np.float64]
Pairs = Iterator[tuple[str, float]]
Estimates = Mapping[str, float]
Columns = tuple[tuple[str, ...], Values]
"""Names of C columns, and their values ``[C, L, S]``."""

_Column = NDArray[np.floating] | NDArray[np.integer]

_ALL_LAYERS: Final = slice(None)
_LAST_LAYER_ONLY: Final = slice(-1, None)


def features(record: GenerationRecord, estimates: Estimates) -> dict[str, dict[str, float]]:
    """The features of ``record``, ``{group: {name: value}}``, all finite.

    A group that was not observed, or only in part, is missing. What a model or a run cannot have
    (attention, or a change from step to step where there is one step) is no part of any group.
    Means and spreads are taken over what was observed; layers are taken in thirds, so that the
    number of features is that of no model. Entropies and surprisals are in bits, norms are
    logarithms to base e.

    Args:
        record: one generation.
        estimates: its estimators (`corevital.calibration.estimators`).
    """
    if not record.steps:
        return {}
    with np.errstate(all="ignore"):
        found = {group: dict(make(record, estimates)) for group, make in _MAKERS.items()}
    return {
        group: values
        for group, values in found.items()
        if values and all(np.isfinite(value) for value in values.values())
    }


def flat(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All features of all groups under their full names, ``<group>.<name>``."""
    return {
        f"{group}.{name}": value
        for group, values in groups.items()
        for name, value in values.items()
    }


def _logits(record: GenerationRecord, estimates: Estimates) -> Pairs:
    logits = record.logits
    if logits is None:
        return
    yield "length", float(np.log(record.steps))
    yield "prompt_length", float(np.log(max(record.prompt_tokens, 1)))
    for name, value in logarithms(estimates).items():
        if name != RAUQ:
            yield f"log.{name}", value
    for name, column in (
        ("entropy", logits.entropy),
        ("surprisal", logits.surprisal),
        ("margin", logits.margin),
        ("top_k_mass", logits.top_k_mass),
    ):
        values = np.asarray(column, dtype=np.float64)
        yield f"{name}.mean", float(values.mean())
        yield f"{name}.std", float(values.std())
        yield f"{name}.worst", float(values.max() if name in _HIGH_IS_BAD else values.min())
        yield f"{name}.first", float(values[0])
        yield f"{name}.last", float(values[-1])


_HIGH_IS_BAD: Final = ("entropy", "surprisal")


def _last_layer(record: GenerationRecord, _: Estimates) -> Pairs:
    hidden, attention = record.hidden, record.attention
    if hidden is None or hidden.l2_norm.shape[1] == 0:
        return
    yield from _over_steps(_hidden_columns(hidden, _LAST_LAYER_ONLY))
    if record.steps > 1:
        yield "cosine.mean", float(_mean(hidden.last_layer_cosine[1:].astype(np.float64), 0))
    if attention is not None and attention.entropy_mean.shape[1]:
        for name, value in _over_steps(_attention_columns(attention, _LAST_LAYER_ONLY)):
            yield f"attention.{name}", value


def _hidden(record: GenerationRecord, _: Estimates) -> Pairs:
    hidden = record.hidden
    if hidden is not None and hidden.l2_norm.shape[1] >= len(_THIRDS):
        yield from _over_thirds(_hidden_columns(hidden, _ALL_LAYERS))


def _attention(record: GenerationRecord, estimates: Estimates) -> Pairs:
    attention = record.attention
    if attention is None or attention.entropy_mean.shape[1] < len(_THIRDS):
        return
    yield from _over_thirds(_attention_columns(attention, _ALL_LAYERS))
    if RAUQ in estimates:
        yield f"log.{RAUQ}", logarithms(estimates)[RAUQ]


def _prompt(record: GenerationRecord, _: Estimates) -> Pairs:
    prompt = record.prompt
    surprisal, transformation, basin = prompt.surprisal, prompt.layer_transformation, prompt.basin
    if surprisal is None or len(surprisal) == 0 or transformation is None:
        return
    surprisal = surprisal.astype(np.float64)
    recent = surprisal[-_RECENT_PROMPT_TOKENS:]
    yield "surprisal.mean", float(surprisal.mean())
    yield "surprisal.std", float(surprisal.std())
    yield "surprisal.recent.mean", float(recent.mean())
    yield "surprisal.recent.max", float(recent.max())
    if len(transformation) >= len(_THIRDS):
        for third, layers in _thirds(len(transformation)):
            part = transformation[layers].astype(np.float64)
            yield f"layer_transformation.{third}", float(_mean(part, 0))
    if basin is not None and len(basin) >= len(_THIRDS):
        for third, layers in _thirds(len(basin)):
            part = np.log1p(basin[layers].astype(np.float64))
            yield f"basin.{third}", float(_mean(part, (0, 1)))


def _hidden_columns(hidden: HiddenColumns, layers: slice) -> Columns:
    names = ("l2_norm", "max_abs", "std", "mean")
    values = _stacked([getattr(hidden, name) for name in names], layers)
    values[:-1] = np.log(np.maximum(values[:-1], np.finfo(np.float32).tiny))
    return names, values


def _attention_columns(attention: AttentionColumns, layers: slice) -> Columns:
    columns: dict[str, _Column] = {
        "entropy": attention.entropy_mean,
        "normalized_entropy": attention.normalized_entropy_mean,
        "entropy.min": attention.entropy_min,
        "entropy.max": attention.entropy_max,
        "concentration.max": attention.concentration_max,
        "concentration.min": attention.concentration_min,
        "collapsed_share": attention.collapsed_heads,
        "focused_share": attention.focused_heads,
    }
    values = _stacked([*columns.values()], layers)
    counted = values[-2:]
    counted /= np.maximum(attention.heads[layers], 1)[:, None]
    counted[:, ~np.isfinite(values[0])] = np.nan
    return tuple(columns), values


def _stacked(columns: Sequence[_Column], layers: slice) -> Values:
    """Columns ``[S, L]`` as ``[C, L, S]``: sums over layers are then sums of whole rows."""
    steps, width = columns[0][:, layers].shape
    values = np.empty((len(columns), width, steps))
    for place, column in enumerate(columns):
        values[place] = column[:, layers].T
    return values


def _over_steps(columns: Columns) -> Pairs:
    """Of the only layer: level, change over steps, start."""
    names, values = columns
    of_layer = values[:, 0]
    found = (_mean(of_layer, 1), _std(of_layer, 1), of_layer[:, 0])
    for place, name in enumerate(names):
        for statistic, of_column in zip(("mean", "spread", "first"), found, strict=True):
            yield f"{name}.{statistic}", float(of_column[place])


def _over_thirds(columns: Columns) -> Pairs:
    """In each third of the layers: level, change over steps, start, unevenness."""
    names, values = columns
    found: dict[str, Values] = {}
    for third, layers in _thirds(values.shape[1]):
        part = values[:, layers]
        by_step = _mean(part, 1)
        found[f"{third}.mean"] = _mean(part, (1, 2))
        found[f"{third}.spread"] = _std(by_step, 1)
        found[f"{third}.first"] = by_step[:, 0]
        found[f"{third}.over_layers"] = _mean(_std(part, 1), 1)
    for place, name in enumerate(names):
        for statistic, of_column in found.items():
            yield f"{name}.{statistic}", float(of_column[place])


def _thirds(layers: int) -> Iterator[tuple[str, slice]]:
    bounds = (0, layers // 3, 2 * layers // 3, layers)
    for third, start, end in zip(_THIRDS, bounds, bounds[1:], strict=False):
        yield third, slice(start, end)


def _mean(values: Values, axis: int | tuple[int, ...]) -> Values:
    """Mean of what was observed; NaN where nothing was."""
    mean: Values = np.asarray(values.mean(axis=axis))
    if np.isnan(mean).any():
        seen = ~np.isnan(values)
        mean = np.asarray(np.where(seen, values, 0.0).sum(axis=axis) / seen.sum(axis=axis))
    return mean


def _std(values: Values, axis: int) -> Values:
    """Population standard deviation of what was observed; NaN where nothing was."""
    deviations = values - np.expand_dims(_mean(values, axis), axis)
    return np.sqrt(_mean(np.square(deviations, out=deviations), axis))


_MAKERS: Final[dict[str, Callable[[GenerationRecord, Estimates], Pairs]]] = {
    LOGITS: _logits,
    LAST_LAYER: _last_layer,
    HIDDEN: _hidden,
    ATTENTION: _attention,
    PROMPT: _prompt,
}
