"""What holds for every record, however strange."""

from __future__ import annotations

import math
import re
from dataclasses import astuple, fields, replace
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corevital.assess import Assessment, Profile, assess, profile_for
from corevital.assess.fingerprint import LIMIT, NAMES
from corevital.assess.narrative import narrative
from corevital.assess.risk import USUAL_LEVELS
from corevital.record import (
    LAGS,
    AttentionColumns,
    Captured,
    Floats,
    GenerationRecord,
    HiddenColumns,
    LogitColumns,
    PreviousTokenWeight,
)
from tests.assess.records import (
    attention_columns,
    hidden_columns,
    logit_columns,
    record,
    unobserved,
)

Columns = TypeVar("Columns", HiddenColumns, AttentionColumns, PreviousTokenWeight)

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
    made = hidden_columns(
        draw(columns(steps, width, hostile=hostile)),
        layers=range(3, 3 + width),
        non_finite=draw(arrays.arrays(bool, (steps, width))) if hostile else None,
        last_layer_cosine=draw(columns(steps)) if hostile else None,
        lag_cosine=draw(st.none() | lag_cosines(steps)),
    )
    others = ("mean", "std", "max_abs", "clip_fraction")
    return replace(made, **draw(unrelated(others, steps, width))) if hostile else made


@st.composite
def unrelated(draw: st.DrawFn, names: tuple[str, ...], steps: int, width: int) -> dict[str, Any]:
    """Columns that have nothing to do with each other, or none."""
    return {name: draw(columns(steps, width)) for name in names} if draw(st.booleans()) else {}


def lag_cosines(steps: int) -> st.SearchStrategy[np.ndarray[Any, np.dtype[np.float16]]]:
    elements = st.floats(width=16) | st.sampled_from([np.nan, np.inf, 1.0])
    return arrays.arrays(np.float16, (steps, LAGS), elements=elements)


@st.composite
def attention(draw: st.DrawFn, steps: int, hostile: bool = True) -> AttentionColumns:
    width = draw(LAYERS)
    shape = (steps, width)
    bounds = (-5, 50) if hostile else (0, 4)
    columns_of_layers = attention_columns(
        draw(arrays.arrays(np.int64, shape, elements=st.integers(*bounds))),
        heads=draw(arrays.arrays(np.int64, width, elements=st.integers(bounds[0], 8))),
        layers=range(width),
        observed=draw(arrays.arrays(bool, shape)) if hostile else True,
        non_finite=draw(arrays.arrays(bool, shape)) if hostile else None,
    )
    others = (
        *("entropy_min", "entropy_max", "normalized_entropy_mean"),
        *("concentration_max", "concentration_min"),
    )
    return replace(
        columns_of_layers,
        previous_token_weight=draw(st.none() | weights(steps)),
        **(draw(unrelated(others, steps, width)) if hostile else {}),
    )


@st.composite
def weights(draw: st.DrawFn, steps: int) -> PreviousTokenWeight:
    layers, heads = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    return PreviousTokenWeight(np.arange(layers), draw(columns(steps, layers, heads)))


@st.composite
def records(draw: st.DrawFn, *, hostile: bool = True) -> GenerationRecord:
    """Any part may be missing; basin scores may be empty."""
    steps = draw(STEPS)
    made = record(
        logits=draw(st.none() | logits(steps, hostile)),
        hidden=draw(st.none() | hidden(steps, hostile)),
        attention=draw(st.none() | attention(steps, hostile)),
        basin=draw(st.none() | columns(2, 3) | columns(0, 0)),
    )
    sizes = st.none() | st.integers(-1, 10**6)
    return replace(
        made,
        model=replace(
            made.model,
            layers=draw(sizes),
            hidden_size=draw(sizes),
            vocabulary_size=draw(sizes),
        ),
        capture=replace(made.capture, attention=Captured(draw(st.booleans()), draw(st.text()))),
        prompt=replace(
            made.prompt,
            surprisal=draw(st.none() | columns(3)),
            layer_transformation=draw(st.none() | columns(2) | columns(0)),
        ),
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
    assert found.risk.level == USUAL_LEVELS.of(found.risk.score)
    assert all(0.0 <= factor.contribution <= 1.0 for factor in found.risk.factors)
    assert found.risk.heuristic == pytest.approx(
        min(1.0, sum(factor.contribution for factor in found.risk.factors))
    )
    assert 0.0 <= found.early_warning.score <= 1.0
    assert bool(found.early_warning.signals) == (found.early_warning.score > 0.0)
    assert all(0.0 < signal.severity <= 1.0 and signal.evidence for signal in found.signals)
    assert all(0.0 < blame.severity <= 1.0 and all(blame.reasons) for blame in found.blame)
    assert 0.0 <= found.flags.attention_collapse_severity <= 1.0
    assert found.flags.attention_collapse == (found.flags.attention_collapse_severity > 0.0)
    assert 0 <= found.flags.high_entropy_steps <= generation.steps
    assert not any(map(math.isinf, astuple(found.uncertainty)))
    assert math.isnan(found.uncertainty.rauq) or found.uncertainty.rauq >= 0.0


@given(records(), PROFILES)
def test_the_fingerprint_is_finite_and_limited(
    generation: GenerationRecord, profile: Profile
) -> None:
    found = strictly_assessed(generation, profile).fingerprint

    assert len(found) == len(NAMES)
    assert all(type(element) is float and abs(element) <= LIMIT for element in found)


@given(records())
def test_a_violation_is_in_the_record_and_its_numbers_are_finite(
    generation: GenerationRecord,
) -> None:
    found = strictly_assessed(generation, Profile()).consistency

    assert len({broken.name for broken in found}) == len(found)
    for broken in found:
        assert broken.places > 0
        assert broken.step is None or 0 <= broken.step < generation.steps
        assert broken.values
        assert all(map(math.isfinite, broken.values.values()))
        assert str(broken).isprintable()


@given(
    records(),
    st.booleans(),
    st.lists(st.text() | st.sampled_from(["\n", "\ud800", "\U0001f9d1" * 3000]), max_size=14),
)
def test_the_narrative_is_short_and_printable(
    generation: GenerationRecord, is_shown: bool, texts: list[str]
) -> None:
    assessment = assess(generation, Profile())
    with np.errstate(all="raise"):
        text = narrative(generation, assessment, texts if is_shown else None)

    assert text.isprintable()
    assert len(text.encode()) < 1024
    assert text.endswith(".")
    assert not {"nan", "inf"} & set(re.findall(r"[a-z]+", text))


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

    assert without_steps(assess(gappy, Profile())) == without_steps(assess(generation, Profile()))


def without_steps(found: Assessment) -> Assessment:
    """The assessment without the steps that it names."""
    return replace(found, consistency=tuple(replace(each, step=0) for each in found.consistency))


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
    gappy: dict[str, Any] = {}
    for field in fields(part):
        values = getattr(part, field.name)
        if isinstance(values, PreviousTokenWeight):
            gappy[field.name] = with_gaps(values, gaps)
        elif values is not None and field.name not in ("layers", "heads"):
            unseen = np.nan if np.issubdtype(values.dtype, np.floating) else 0
            gappy[field.name] = np.insert(values, gaps, unseen, axis=0)
    return replace(part, **gappy)
