"""Whether the numbers of a record agree with each other, as their definitions say they must.

A violation is a fault of the capture, never of the model: of a record that has one, no other result
should be trusted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt

from corevital.record import (
    AttentionColumns,
    Bools,
    GenerationRecord,
    HiddenColumns,
    Ints,
    LogitColumns,
    ModelDescription,
    PromptColumns,
)

# Rounding stays below these, attention weights that a model computes in half precision included.
ABSOLUTE_TOLERANCE: Final = 1e-3
RELATIVE_TOLERANCE: Final = 1e-2

FOCUSED_ABOVE: Final = 0.9
LARGEST_EXPONENT: Final = 120.0

NEGATIVE_ENTROPY: Final = "negative_entropy"
ENTROPY_ABOVE_VOCABULARY: Final = "entropy_above_vocabulary"
ENTROPY_BELOW_TOP_K_MASS: Final = "entropy_below_top_k_mass"
PERPLEXITY_NOT_FROM_ENTROPY: Final = "perplexity_not_from_entropy"
NEGATIVE_SURPRISAL: Final = "negative_surprisal"
MARGIN_OUT_OF_RANGE: Final = "margin_out_of_range"
TOP_K_MASS_OUT_OF_RANGE: Final = "top_k_mass_out_of_range"
MARGIN_ABOVE_TOP_K_MASS: Final = "margin_above_top_k_mass"
TOKEN_ABOVE_TOP_K_MASS: Final = "token_above_top_k_mass"
NEGATIVE_STD: Final = "negative_hidden_std"
CLIP_FRACTION_OUT_OF_RANGE: Final = "clip_fraction_out_of_range"
MAX_ABS_ABOVE_L2_NORM: Final = "max_abs_above_l2_norm"
MEAN_ABOVE_MAX_ABS: Final = "mean_above_max_abs"
L2_NORM_BELOW_MEAN: Final = "l2_norm_below_mean"
L2_NORM_NOT_FROM_MEAN_AND_STD: Final = "l2_norm_not_from_mean_and_std"
COSINE_OUT_OF_RANGE: Final = "cosine_out_of_range"
NEGATIVE_ATTENTION_ENTROPY: Final = "negative_attention_entropy"
ATTENTION_ENTROPY_OUT_OF_ORDER: Final = "attention_entropy_out_of_order"
NORMALIZED_ENTROPY_OUT_OF_RANGE: Final = "normalized_entropy_out_of_range"
CONCENTRATION_OUT_OF_RANGE: Final = "concentration_out_of_range"
CONCENTRATION_OUT_OF_ORDER: Final = "concentration_out_of_order"
COLLAPSED_HEADS_OUT_OF_RANGE: Final = "collapsed_heads_out_of_range"
FOCUSED_HEADS_OUT_OF_RANGE: Final = "focused_heads_out_of_range"
FOCUSED_HEADS_NOT_FROM_CONCENTRATION: Final = "focused_heads_not_from_concentration"
NEGATIVE_PROMPT_SURPRISAL: Final = "negative_prompt_surprisal"
TRANSFORMATION_OUT_OF_RANGE: Final = "layer_transformation_out_of_range"
NEGATIVE_BASIN: Final = "negative_basin"

_Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Violation:
    """A rule that a record breaks, and the first place where it does.

    ``step`` is ``None`` in the prompt, ``layer`` (the index in the model) where the rule is not
    about layers. ``values`` are the numbers that it is about, there. ``places`` counts the
    steps and layers at which the rule is broken.
    """

    name: str
    step: int | None
    layer: int | None
    values: Mapping[str, float]
    places: int

    def __str__(self) -> str:
        """The violation in words."""
        at = [f"step {self.step}"] if self.step is not None else ["the prompt"]
        at += [f"layer {self.layer}"] if self.layer is not None else []
        values = ", ".join(f"{name} {value:.6g}" for name, value in self.values.items())
        others = f" ({self.places} places)" if self.places > 1 else ""
        return f"{self.name} at {', '.join(at)}: {values}{others}"


@dataclass(frozen=True, slots=True)
class _Rule:
    """``broken`` and every one of ``values`` are ``[S]``, or ``[S, L]`` with ``layers`` ``[L]``."""

    name: str
    broken: Bools
    values: Mapping[str, npt.NDArray[np.generic]]
    layers: Ints | None = None
    in_prompt: bool = False


def consistency(record: GenerationRecord) -> tuple[Violation, ...]:
    """The rules that ``record`` breaks, one entry for each, in a fixed order.

    Rules follow from the definitions in `corevital.record`. A rule is checked wherever all its
    numbers are finite and those sizes of the model that it needs are known.
    """
    return tuple(violation for rule in _rules(record) if (violation := _violation(rule)))


def _violation(rule: _Rule) -> Violation | None:
    places = int(np.count_nonzero(rule.broken))
    if not places:
        return None
    place = np.unravel_index(int(rule.broken.argmax()), rule.broken.shape)
    return Violation(
        rule.name,
        None if rule.in_prompt else int(place[0]),
        None if rule.layers is None else int(rule.layers[place[-1]]),
        {
            name: value
            for name, values in rule.values.items()
            if math.isfinite(value := float(np.broadcast_to(values, rule.broken.shape)[place]))
        },
        places,
    )


def _rules(record: GenerationRecord) -> Iterator[_Rule]:
    if record.logits is not None:
        yield from _logit_rules(record.logits, record.model)
    if record.hidden is not None:
        yield from _hidden_rules(record.hidden, record.model)
    if record.attention is not None:
        yield from _attention_rules(record.attention)
    if record.cross_attention is not None:
        for rule in _attention_rules(record.cross_attention):
            yield replace(rule, name=f"cross_attention:{rule.name}")
    yield from _prompt_rules(record.prompt)


def _logit_rules(logits: LogitColumns, model: ModelDescription) -> Iterator[_Rule]:
    entropy, surprisal = _finite(logits.entropy), _finite(logits.surprisal)
    margin, mass = _finite(logits.margin), _finite(logits.top_k_mass)
    yield _Rule(NEGATIVE_ENTROPY, _above(0.0, entropy), {"entropy": entropy})
    if model.vocabulary_size is not None and model.vocabulary_size > 0:
        largest = math.log2(model.vocabulary_size)
        yield _Rule(ENTROPY_ABOVE_VOCABULARY, _above(entropy, largest), {"entropy": entropy})
    representable = (entropy >= 0.0) & (entropy <= LARGEST_EXPONENT)
    with np.errstate(over="ignore", under="ignore"):
        perplexity = np.where(representable, _finite(logits.perplexity), np.nan)
    yield _Rule(
        PERPLEXITY_NOT_FROM_ENTROPY,
        _differs(perplexity, np.exp2(np.where(representable, entropy, np.nan))),
        {"perplexity": perplexity, "entropy": entropy},
    )
    yield _Rule(NEGATIVE_SURPRISAL, _above(0.0, surprisal), {"surprisal": surprisal})
    yield _Rule(MARGIN_OUT_OF_RANGE, _outside(margin, 1.0), {"margin": margin})
    yield _Rule(TOP_K_MASS_OUT_OF_RANGE, _outside(mass, 1.0), {"top_k_mass": mass})
    # The mass holds p1 whatever k is, and p1 is at least p1 - p2 and any token's probability.
    yield _Rule(
        MARGIN_ABOVE_TOP_K_MASS, _above(margin, mass), {"margin": margin, "top_k_mass": mass}
    )
    yield _Rule(
        TOKEN_ABOVE_TOP_K_MASS,
        _above(np.exp2(-np.clip(surprisal, 0.0, LARGEST_EXPONENT)), mass),
        {"surprisal": surprisal, "top_k_mass": mass},
    )
    # Shannon's entropy is at least the min-entropy -log2(p1).
    min_entropy = -np.log2(np.where((mass > 0.0) & (mass <= 1.0), mass, np.nan))
    yield _Rule(
        ENTROPY_BELOW_TOP_K_MASS,
        _above(min_entropy, entropy),
        {"entropy": entropy, "top_k_mass": mass},
    )


def _hidden_rules(hidden: HiddenColumns, model: ModelDescription) -> Iterator[_Rule]:
    mean, std = _finite(hidden.mean), _finite(hidden.std)
    norm, peak = _finite(hidden.l2_norm), _finite(hidden.max_abs)
    clipped, cosine = _finite(hidden.clip_fraction), _finite(hidden.last_layer_cosine)
    layers = hidden.layers
    yield _Rule(NEGATIVE_STD, _above(0.0, std), {"std": std}, layers)
    yield _Rule(
        CLIP_FRACTION_OUT_OF_RANGE, _outside(clipped, 1.0), {"clip_fraction": clipped}, layers
    )
    yield _Rule(
        MAX_ABS_ABOVE_L2_NORM, _above(peak, norm), {"max_abs": peak, "l2_norm": norm}, layers
    )
    yield _Rule(
        MEAN_ABOVE_MAX_ABS, _above(np.abs(mean), peak), {"mean": mean, "max_abs": peak}, layers
    )
    if (size := model.hidden_size) is not None and size > 1:
        least = np.abs(mean) * math.sqrt(size)
        yield _Rule(
            L2_NORM_BELOW_MEAN, _above(least, norm), {"l2_norm": norm, "mean": mean}, layers
        )
    yield _Rule(
        L2_NORM_NOT_FROM_MEAN_AND_STD,
        _changes_over_steps(_implied_size(norm, mean, std)),
        {"l2_norm": norm, "mean": mean, "std": std},
        layers,
    )
    yield _Rule(COSINE_OUT_OF_RANGE, _above(np.abs(cosine), 1.0), {"last_layer_cosine": cosine})


def _implied_size(norm: _Array, mean: _Array, std: _Array) -> _Array:
    """D by ``norm**2 = D * mean**2 + (D - 1) * std**2``, ``[S, L]``.

    Not every layer's D is the hidden size of the model, but each has one and the same at all steps.
    """
    squares = mean**2 + std**2
    return (norm**2 + std**2) / np.where(squares > 0.0, squares, np.nan)


def _changes_over_steps(values: _Array) -> Bools:
    """Where ``values`` ``[S, L]`` are not those of their layer's first observed step."""
    if not values.size:
        return np.zeros(values.shape, dtype=np.bool_)
    first = (~np.isnan(values)).argmax(axis=0)
    return _differs(values, values[first, np.arange(values.shape[1])])


def _attention_rules(attention: AttentionColumns) -> Iterator[_Rule]:
    mean, normalized = (
        _finite(attention.entropy_mean),
        _finite(attention.normalized_entropy_mean),
    )
    least, most = _finite(attention.entropy_min), _finite(attention.entropy_max)
    low, high = _finite(attention.concentration_min), _finite(attention.concentration_max)
    layers, seen = attention.layers, ~np.isnan(mean)
    collapsed, focused = attention.collapsed_heads, attention.focused_heads
    yield _Rule(NEGATIVE_ATTENTION_ENTROPY, _above(0.0, least), {"entropy_min": least}, layers)
    yield _Rule(
        ATTENTION_ENTROPY_OUT_OF_ORDER,
        _above(least, mean) | _above(mean, most),
        {"entropy_min": least, "entropy_mean": mean, "entropy_max": most},
        layers,
    )
    yield _Rule(
        NORMALIZED_ENTROPY_OUT_OF_RANGE,
        _outside(normalized, 1.0),
        {"normalized_entropy_mean": normalized},
        layers,
    )
    concentrations = {"concentration_min": low, "concentration_max": high}
    yield _Rule(
        CONCENTRATION_OUT_OF_RANGE, _outside(low, 1.0) | _outside(high, 1.0), concentrations, layers
    )
    yield _Rule(CONCENTRATION_OUT_OF_ORDER, _above(low, high), concentrations, layers)
    for name, count, column in (
        (COLLAPSED_HEADS_OUT_OF_RANGE, collapsed, "collapsed_heads"),
        (FOCUSED_HEADS_OUT_OF_RANGE, focused, "focused_heads"),
    ):
        yield _Rule(
            name,
            seen & ((count < 0) | (count > attention.heads)),
            {column: count, "heads": attention.heads},
            layers,
        )
    yield _Rule(
        FOCUSED_HEADS_NOT_FROM_CONCENTRATION,
        ((focused > 0) & _above(FOCUSED_ABOVE, high))
        | ((focused == 0) & _above(high, FOCUSED_ABOVE)),
        {"focused_heads": focused, "concentration_max": high},
        layers,
    )


def _prompt_rules(prompt: PromptColumns) -> Iterator[_Rule]:
    if prompt.surprisal is not None:
        surprisal = _finite(prompt.surprisal)
        yield _Rule(
            NEGATIVE_PROMPT_SURPRISAL,
            _above(0.0, surprisal),
            {"surprisal": surprisal},
            in_prompt=True,
        )
    if prompt.layer_transformation is not None:
        values = _finite(prompt.layer_transformation)
        yield _Rule(
            TRANSFORMATION_OUT_OF_RANGE,
            _outside(values, 2.0),
            {"layer_transformation": values},
            np.arange(len(values)),
            in_prompt=True,
        )
    if prompt.basin is not None:
        basin = _finite(prompt.basin).T
        yield _Rule(
            NEGATIVE_BASIN,
            _above(0.0, basin),
            {"basin": basin},
            np.arange(basin.shape[1]),
            in_prompt=True,
        )


def _finite(values: npt.NDArray[np.floating]) -> _Array:
    """``values`` with NaN for what is not finite: every comparison with it is false."""
    known = values.astype(np.float64)
    known[~np.isfinite(known)] = np.nan
    return known


def _tolerance(of: _Array | float) -> _Array | float:
    return ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(of)


def _above(larger: _Array | float, smaller: _Array | float) -> Bools:
    """Where the first is above the second by more than rounding."""
    above = np.asarray(np.greater(larger, smaller))
    if not above.any():
        return above
    return np.asarray(larger - smaller > _tolerance(smaller), dtype=np.bool_)


def _outside(values: _Array, upper: float) -> Bools:
    """Where ``values`` lie outside [0, ``upper``] by more than rounding."""
    outside: Bools = _above(0.0, values) | _above(values, upper)
    return outside


def _differs(left: _Array, right: _Array) -> Bools:
    return np.asarray(np.abs(left - right) > _tolerance(right), dtype=np.bool_)
