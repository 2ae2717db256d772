"""Each rule that a record's numbers have to keep, broken one at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from corevital.assess import consistency as rules
from corevital.assess.consistency import Violation, consistency
from corevital.record import Floats, GenerationRecord, LogitColumns
from tests.assess.records import floats, logit_columns, record
from tests.telemetry.records import HEADS, LAYERS, full_record

STEPS = 6
NAN = math.nan


def consistent() -> GenerationRecord:
    made = full_record(STEPS)
    return replace(made, model=replace(made.model, hidden_size=16, vocabulary_size=100))


def with_value(generation: GenerationRecord, part: str, place: Any, **values: Any) -> Any:
    """The record with other values of some columns at one place."""
    columns = getattr(generation, part)
    changed = {}
    for name, value in values.items():
        changed[name] = getattr(columns, name).copy()
        changed[name][place] = value
    return replace(generation, **{part: replace(columns, **changed)})


def names(generation: GenerationRecord) -> list[str]:
    return [broken.name for broken in consistency(generation)]


def test_a_consistent_record_breaks_no_rule() -> None:
    assert consistency(consistent()) == ()


def test_nothing_observed_breaks_no_rule() -> None:
    assert consistency(record()) == ()


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        ({"entropy": -0.5}, [rules.NEGATIVE_ENTROPY, rules.ENTROPY_BELOW_TOP_K_MASS]),
        ({"entropy": 6.8}, [rules.ENTROPY_ABOVE_VOCABULARY]),
        ({"surprisal": -0.5}, [rules.NEGATIVE_SURPRISAL, rules.TOKEN_ABOVE_TOP_K_MASS]),
        ({"margin": -0.1}, [rules.MARGIN_OUT_OF_RANGE]),
        ({"margin": 1.1}, [rules.MARGIN_OUT_OF_RANGE, rules.MARGIN_ABOVE_TOP_K_MASS]),
        ({"top_k_mass": 1.1}, [rules.TOP_K_MASS_OUT_OF_RANGE]),
        ({"margin": 0.9, "top_k_mass": 0.8}, [rules.MARGIN_ABOVE_TOP_K_MASS]),
        ({"surprisal": 0.5, "margin": 0.1, "top_k_mass": 0.6}, [rules.TOKEN_ABOVE_TOP_K_MASS]),
        ({"entropy": 0.5, "margin": 0.1, "top_k_mass": 0.5}, [rules.ENTROPY_BELOW_TOP_K_MASS]),
    ],
)
def test_a_rule_of_the_logits(values: dict[str, float], broken: list[str]) -> None:
    others = {"entropy": 3.0, "surprisal": 4.0, "margin": 0.1, "top_k_mass": 0.9}
    generation = with_value(consistent(), "logits", 2, **(others | values))

    found = consistency(generation)

    assert [each.name for each in found] == broken
    assert {(each.step, each.layer, each.places) for each in found} == {(2, None, 1)}


def test_the_mass_of_one_token_may_be_the_margin() -> None:
    alone = logit_columns(entropy=[0.0], surprisal=[0.0], margin=[1.0], top_k_mass=[1.0])
    favourite = logit_columns(entropy=[1.5], surprisal=[1.0], margin=[0.3], top_k_mass=[0.5])

    assert consistency(record(logits=alone)) == ()
    assert consistency(record(logits=favourite)) == ()


def test_entropy_has_no_upper_bound_where_the_vocabulary_is_not_known() -> None:
    generation = record(logits=logit_columns(entropy=[99.0]))

    assert consistency(generation) == ()


@dataclass(frozen=True)
class NaturalPerplexity(LogitColumns):
    """Columns that take the entropy for one in nats."""

    @property
    def perplexity(self) -> Floats:
        return np.exp(self.entropy)


def test_perplexity_is_two_to_the_entropy() -> None:
    column = floats([1.0, 0.0, 2.0])
    one = floats([1.0, 1.0, 1.0])
    logits = NaturalPerplexity(entropy=column, surprisal=one, margin=one * 0, top_k_mass=one)

    (broken,) = consistency(record(logits=logits))

    assert broken.name == rules.PERPLEXITY_NOT_FROM_ENTROPY
    assert (broken.step, broken.places) == (0, 2)
    assert broken.values == pytest.approx({"perplexity": math.e, "entropy": 1.0})


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        ({"std": -1.0}, [rules.NEGATIVE_STD]),
        ({"clip_fraction": 1.5}, [rules.CLIP_FRACTION_OUT_OF_RANGE]),
        ({"max_abs": 100.0}, [rules.MAX_ABS_ABOVE_L2_NORM]),
        ({"max_abs": 0.5}, [rules.MEAN_ABOVE_MAX_ABS]),
        ({"l2_norm": 9.0}, [rules.L2_NORM_NOT_FROM_MEAN_AND_STD]),
        ({"l2_norm": 3.0}, [rules.L2_NORM_BELOW_MEAN, rules.L2_NORM_NOT_FROM_MEAN_AND_STD]),
    ],
)
def test_a_rule_of_the_hidden_states(values: dict[str, float], broken: list[str]) -> None:
    others = {"mean": 1.0, "std": 1.0, "max_abs": 2.0, "l2_norm": math.sqrt(16 + 15)}
    generation = with_value(consistent(), "hidden", (3, 1), **(others | values))

    found = consistency(generation)

    assert [each.name for each in found] == broken
    assert {(each.step, each.layer, each.places) for each in found} == {(3, 1, 1)}


def test_layers_may_differ_in_width_and_from_the_hidden_size() -> None:
    generation = consistent()
    assert generation.hidden is not None
    hidden = generation.hidden
    widths = np.asarray([8, 16, 32], dtype=np.float32)
    norm = np.sqrt(widths * hidden.mean**2 + (widths - 1) * hidden.std**2)
    model = replace(generation.model, hidden_size=None)

    assert names(replace(generation, model=model, hidden=replace(hidden, l2_norm=norm))) == []


def test_a_cosine_is_at_most_one() -> None:
    generation = with_value(consistent(), "hidden", 4, last_layer_cosine=-1.2)

    (broken,) = consistency(generation)

    assert (broken.name, broken.step, broken.layer) == (rules.COSINE_OUT_OF_RANGE, 4, None)


@pytest.mark.parametrize(
    ("values", "broken"),
    [
        ({"entropy_min": -0.1}, [rules.NEGATIVE_ATTENTION_ENTROPY]),
        ({"entropy_min": 2.5}, [rules.ATTENTION_ENTROPY_OUT_OF_ORDER]),
        ({"entropy_max": 1.5}, [rules.ATTENTION_ENTROPY_OUT_OF_ORDER]),
        ({"normalized_entropy_mean": 1.1}, [rules.NORMALIZED_ENTROPY_OUT_OF_RANGE]),
        ({"normalized_entropy_mean": -0.1}, [rules.NORMALIZED_ENTROPY_OUT_OF_RANGE]),
        ({"concentration_max": 1.1}, [rules.CONCENTRATION_OUT_OF_RANGE]),
        ({"concentration_min": 0.97}, [rules.CONCENTRATION_OUT_OF_ORDER]),
        ({"collapsed_heads": HEADS + 1}, [rules.COLLAPSED_HEADS_OUT_OF_RANGE]),
        ({"collapsed_heads": -1}, [rules.COLLAPSED_HEADS_OUT_OF_RANGE]),
        ({"focused_heads": HEADS + 1}, [rules.FOCUSED_HEADS_OUT_OF_RANGE]),
        ({"focused_heads": 0}, [rules.FOCUSED_HEADS_NOT_FROM_CONCENTRATION]),
        ({"concentration_max": 0.8}, [rules.FOCUSED_HEADS_NOT_FROM_CONCENTRATION]),
    ],
)
def test_a_rule_of_the_attention(values: dict[str, float], broken: list[str]) -> None:
    others = {
        "entropy_min": 1.0,
        "entropy_mean": 2.0,
        "entropy_max": 3.0,
        "concentration_min": 0.2,
        "concentration_max": 0.95,
    }
    generation = with_value(consistent(), "attention", (5, 2), **(others | values))

    found = consistency(generation)

    assert [each.name for each in found] == broken
    assert {(each.step, each.layer, each.places) for each in found} == {(5, 2, 1)}


def test_heads_may_be_collapsed_and_focused_at_once() -> None:
    generation = with_value(
        consistent(), "attention", (0, 0), collapsed_heads=HEADS, focused_heads=HEADS
    )

    assert consistency(generation) == ()


@pytest.mark.parametrize(
    ("column", "values", "broken", "layer"),
    [
        ("surprisal", [1.0, -1.0], rules.NEGATIVE_PROMPT_SURPRISAL, None),
        ("layer_transformation", [0.1, 2.5], rules.TRANSFORMATION_OUT_OF_RANGE, 1),
        ("basin", [[0.5, NAN], [-0.5, 1.0]], rules.NEGATIVE_BASIN, 1),
    ],
)
def test_a_rule_of_the_prompt(column: str, values: Any, broken: str, layer: int | None) -> None:
    generation = consistent()
    changed: dict[str, Any] = {column: floats(values)}
    prompt = replace(generation.prompt, **changed)

    (found,) = consistency(replace(generation, prompt=prompt))

    assert (found.name, found.step, found.layer) == (broken, None, layer)


@pytest.mark.parametrize("value", [NAN, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["logits", "hidden", "attention"])
def test_what_is_not_finite_breaks_no_rule(part: str, value: float) -> None:
    generation = consistent()
    columns = getattr(generation, part)
    floating = [
        name
        for name in columns.__dataclass_fields__
        if getattr(getattr(columns, name), "dtype", None) == np.float32
    ]
    for name in floating:
        place = 1 if getattr(columns, name).ndim == 1 else (1, 1)
        assert consistency(with_value(generation, part, place, **{name: value})) == ()
    assert len(floating) >= 4


@pytest.mark.parametrize(
    ("part", "rounding"), [("logits", 1e-4), ("hidden", 1e-4), ("attention", 2e-3)]
)
def test_rounding_breaks_no_rule(part: str, rounding: float) -> None:
    # Attention weights come from the model, and then in half precision if it has that.
    generation = consistent()
    columns = getattr(generation, part)
    generator = np.random.default_rng(0)
    changed = {
        name: values * generator.uniform(1 - rounding, 1 + rounding, values.shape)
        for name in columns.__dataclass_fields__
        if getattr(values := getattr(columns, name), "dtype", None) == np.float32
    }

    assert consistency(replace(generation, **{part: replace(columns, **changed)})) == ()


def test_a_rule_is_named_once_with_its_first_place() -> None:
    generation = consistent()
    assert generation.attention is not None
    many = np.full((STEPS, LAYERS), -2.0, dtype=np.float32)
    many[:2] = 0.5
    attention = replace(generation.attention, entropy_min=many, layers=np.asarray([7, 8, 9]))

    assert consistency(replace(generation, attention=attention)) == (
        Violation(
            rules.NEGATIVE_ATTENTION_ENTROPY, 2, 7, {"entropy_min": -2.0}, (STEPS - 2) * LAYERS
        ),
    )


def test_a_violation_in_words() -> None:
    one = Violation("a_rule", 3, None, {"margin": 0.75, "top_k_mass": 1 / 3}, 1)
    several = Violation("a_rule", 0, 12, {"std": -1.0}, 40)
    prompt = Violation("a_rule", None, 2, {"basin": -1.0}, 1)

    assert str(one) == "a_rule at step 3: margin 0.75, top_k_mass 0.333333"
    assert str(several) == "a_rule at step 0, layer 12: std -1 (40 places)"
    assert str(prompt) == "a_rule at the prompt, layer 2: basin -1"
