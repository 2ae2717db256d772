"""What holds for every record, however strange."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corevital.assess import Assessment, Profile, assess, profile_for, risk_level
from corevital.record import (
    AttentionColumns,
    Floats,
    GenerationRecord,
    HiddenColumns,
    LogitColumns,
)
from tests.assess.records import (
    attention_columns,
    hidden_columns,
    logit_columns,
    record,
    unobserved,
)

Columns = TypeVar("Columns", LogitColumns, HiddenColumns, AttentionColumns)

STEPS = st.integers(0, 14)
LAYERS = st.integers(0, 10)
PROFILES = st.sampled_from(["default", "gpt2", "llama", "phi3"]).map(profile_for)
TYPICAL = st.floats(0, 10, width=32)
HOSTILE = st.floats(width=32) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0])


def columns(*shape: int, hostile: bool = True) -> st.SearchStrategy[Floats]:
    elements = TYPICAL | HOSTILE if hostile else TYPICAL
    return arrays.arrays(np.float32, shape, elements=elements)


@st.composite
def logits(draw: st.DrawFn, steps: int, hostile: bool = True) -> LogitColumns:
    return logit_columns(
        entropy=draw(columns(steps, hostile=hostile)),
        surprisal=draw(columns(steps, hostile=hostile)),
        margin=draw(columns(steps, hostile=hostile)),
        top_k_mass=draw(columns(steps, hostile=hostile)),
    )


@st.composite
def hidden(draw: st.DrawFn, steps: int, hostile: bool = True) -> HiddenColumns:
    width = draw(LAYERS)
    return hidden_columns(
        draw(columns(steps, width, hostile=hostile)),
        layers=range(3, 3 + width),
        non_finite=draw(arrays.arrays(bool, (steps, width))) if hostile else None,
        last_layer_cosine=draw(columns(steps)) if hostile else None,
    )


@st.composite
def attention(draw: st.DrawFn, steps: int, hostile: bool = True) -> AttentionColumns:
    width = draw(LAYERS)
    shape = (steps, width)
    bounds = (-5, 50) if hostile else (0, 4)
    return attention_columns(
        draw(arrays.arrays(np.int64, shape, elements=st.integers(*bounds))),
        heads=draw(arrays.arrays(np.int64, width, elements=st.integers(bounds[0], 8))),
        layers=range(width),
        observed=draw(arrays.arrays(bool, shape)) if hostile else True,
        non_finite=draw(arrays.arrays(bool, shape)) if hostile else None,
    )


@st.composite
def records(draw: st.DrawFn, *, hostile: bool = True) -> GenerationRecord:
    """Any part may be missing; basin scores may be empty."""
    steps = draw(STEPS)
    return record(
        logits=draw(st.none() | logits(steps, hostile)),
        hidden=draw(st.none() | hidden(steps, hostile)),
        attention=draw(st.none() | attention(steps, hostile)),
        basin=draw(st.none() | columns(2, 3) | columns(0, 0)),
    )


def strictly_assessed(generation: GenerationRecord, profile: Profile) -> Assessment:
    with np.errstate(all="raise"):
        return assess(generation, profile)


@given(records(), PROFILES)
def test_results_are_bounded_and_nothing_is_raised(
    generation: GenerationRecord, profile: Profile
) -> None:
    found = strictly_assessed(generation, profile)

    assert 0.0 <= found.risk.score <= 1.0
    assert found.risk.level == risk_level(found.risk.score)
    assert all(0.0 <= factor.contribution <= 1.0 for factor in found.risk.factors)
    assert found.risk.score == pytest.approx(
        min(1.0, sum(factor.contribution for factor in found.risk.factors))
    )
    assert 0.0 <= found.early_warning.score <= 1.0
    assert bool(found.early_warning.signals) == (found.early_warning.score > 0.0)
    assert all(0.0 < signal.severity <= 1.0 and signal.evidence for signal in found.signals)
    assert all(0.0 < blame.severity <= 1.0 and all(blame.reasons) for blame in found.blame)
    assert 0.0 <= found.flags.attention_collapse_severity <= 1.0
    assert found.flags.attention_collapse == (found.flags.attention_collapse_severity > 0.0)
    assert 0 <= found.flags.high_entropy_steps <= generation.steps


@given(records())
def test_only_layers_of_the_record_are_blamed_each_once(generation: GenerationRecord) -> None:
    parts = [part for part in (generation.hidden, generation.attention) if part is not None]
    known = {int(layer) for part in parts for layer in part.layers}

    blamed = [blame.layer for blame in assess(generation, Profile()).blame]

    assert set(blamed) <= known
    assert blamed == sorted(set(blamed))


@given(records(hostile=False), st.data())
def test_steps_whose_layers_were_not_observed_change_nothing(
    generation: GenerationRecord, data: st.DataObject
) -> None:
    generation = replace(generation, logits=None)
    gaps = data.draw(st.lists(st.integers(0, generation.steps), max_size=4))
    gappy = replace(
        generation,
        token_ids=np.arange(generation.steps + len(gaps)),
        hidden=with_gaps(generation.hidden, gaps),
        attention=with_gaps(generation.attention, gaps),
    )

    assert assess(gappy, Profile()) == assess(generation, Profile())


@given(STEPS, LAYERS)
def test_columns_without_any_observation_are_like_parts_that_were_not_captured(
    steps: int, layers: int
) -> None:
    blank = record(
        hidden=hidden_columns(unobserved(steps, layers)),
        attention=attention_columns(np.zeros((steps, layers)), observed=False),
        basin=unobserved(layers, 2),
    )

    assert strictly_assessed(blank, Profile()) == assess(record(), Profile())


def with_gaps(part: Columns | None, gaps: list[int]) -> Columns | None:
    """``part`` with an unobserved step before each of the steps ``gaps``."""
    if part is None:
        return None
    per_layer_only = {"layers", "heads"}
    return replace(
        part,
        **{
            field.name: np.insert(values, gaps, np.nan if values.dtype == np.float32 else 0, axis=0)
            for field in fields(part)
            if field.name not in per_layer_only
            for values in [getattr(part, field.name)]
        },
    )
