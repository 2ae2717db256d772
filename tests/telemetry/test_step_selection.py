"""Of a long generation, some steps get an event: the first, the last, the remarkable, a sample."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from corevital.record import GenerationRecord
from corevital.telemetry.step_selection import select_steps
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record

THRESHOLD = 4.0


def plain(steps: int) -> GenerationRecord:
    """A record in which no step is more remarkable than another."""
    return record(logits=logit_columns(entropy=[1.0] * steps, surprisal=[1.0] * steps))


def broken(chosen: GenerationRecord) -> set[int]:
    """Steps with NaN or Inf in their logits, states or attention rows."""
    marks = np.zeros(chosen.steps, dtype=bool)
    for columns in (chosen.hidden, chosen.attention):
        if columns is not None:
            marks |= columns.non_finite.any(axis=1)
    if chosen.logits is not None:
        marks |= np.isnan(chosen.logits.entropy)
    return set(np.flatnonzero(marks).tolist())


def flagged(chosen: GenerationRecord) -> set[int]:
    """Steps that are broken or have a high entropy."""
    if chosen.logits is None:
        return broken(chosen)
    high = np.flatnonzero(chosen.logits.entropy > THRESHOLD)
    return broken(chosen) | set(high.tolist())


bits = st.one_of(st.floats(0, 17, width=32), st.just(float("nan")))


@st.composite
def records(draw: st.DrawFn) -> GenerationRecord:
    """Any of what a step can be: quiet, surprising, NaN in its logits, its states or its rows."""
    steps = draw(st.integers(1, 60))
    column = st.lists(bits, min_size=steps, max_size=steps)
    marks = st.lists(st.booleans(), min_size=steps, max_size=steps)
    bad_states = np.asarray(draw(marks))[:, None] if draw(st.booleans()) else None
    bad_rows = np.asarray(draw(marks))[:, None] if draw(st.booleans()) else None
    return record(
        logits=logit_columns(entropy=draw(column), surprisal=draw(column))
        if draw(st.booleans())
        else None,
        hidden=hidden_columns(np.ones((steps, 1)), non_finite=bad_states),
        attention=attention_columns(np.zeros((steps, 1), dtype=int), non_finite=bad_rows),
    )


@given(records(), st.integers(-2, 70))
def test_chooses_as_many_as_there_is_room_for(chosen: GenerationRecord, limit: int) -> None:
    selected = select_steps(chosen, THRESHOLD, limit)

    assert len(selected) == min(chosen.steps, max(limit, 0))
    assert selected == sorted(set(selected))
    assert set(selected) <= set(range(chosen.steps))


@given(records(), st.integers(1, 70))
def test_keeps_the_first_and_the_last(chosen: GenerationRecord, limit: int) -> None:
    selected = select_steps(chosen, THRESHOLD, limit)

    assert selected[0] == 0
    if limit > 1:
        assert selected[-1] == chosen.steps - 1


@given(records(), st.integers(2, 70))
def test_keeps_every_flagged_step_that_half_the_room_can_take(
    chosen: GenerationRecord, limit: int
) -> None:
    selected = set(select_steps(chosen, THRESHOLD, limit))
    between = flagged(chosen) - {0, chosen.steps - 1}
    room = (limit - 2) // 2

    kept = between & selected
    assert len(kept) >= min(room, len(between))
    if len(between) <= room:
        assert kept == between


@given(records(), st.integers(2, 70))
def test_nan_and_inf_come_before_anything_else(chosen: GenerationRecord, limit: int) -> None:
    selected = set(select_steps(chosen, THRESHOLD, limit))
    between = broken(chosen) - {0, chosen.steps - 1}

    assert len(between & selected) >= min((limit - 2) // 2, len(between))


@given(records(), st.integers(0, 70))
def test_chooses_the_same_each_time(chosen: GenerationRecord, limit: int) -> None:
    assert select_steps(chosen, THRESHOLD, limit) == select_steps(chosen, THRESHOLD, limit)


@given(records(), st.integers(6, 70))
def test_spreads_half_of_the_room_evenly(chosen: GenerationRecord, limit: int) -> None:
    selected = select_steps(chosen, THRESHOLD, limit)
    spread = limit - 2 - (limit - 2) // 2
    longest = int(np.diff(selected).max(initial=0))

    assert longest <= (chosen.steps - 1) / (spread - 1) + 2


def test_keeps_a_single_flagged_step_of_many() -> None:
    entropy = [1.0] * 1000
    entropy[617] = 5.0
    found = record(logits=logit_columns(entropy=entropy, surprisal=[1.0] * 1000))

    assert 617 in select_steps(found, THRESHOLD, 10)


def test_keeps_a_single_step_whose_logits_are_nan() -> None:
    entropy = [1.0] * 1000
    entropy[617] = float("nan")
    found = record(logits=logit_columns(entropy=entropy, surprisal=entropy))

    assert 617 in select_steps(found, THRESHOLD, 10)


def test_keeps_the_onset_of_a_loop_of_many_high_entropies() -> None:
    found = record(logits=logit_columns(entropy=[5.0] * 1000, surprisal=[9.0] * 1000))

    assert 617 not in select_steps(found, THRESHOLD, 10)
    assert 617 in select_steps(found, THRESHOLD, 10, [617])


def test_keeps_the_most_surprising_step() -> None:
    surprisal = [1.0] * 1000
    surprisal[388] = 15.0
    found = record(logits=logit_columns(entropy=[1.0] * 1000, surprisal=surprisal))

    assert 388 in select_steps(found, THRESHOLD, 10)


def test_an_even_record_is_sampled_evenly() -> None:
    assert select_steps(plain(100), THRESHOLD, 1) == [0]
    assert select_steps(plain(100), THRESHOLD, 2) == [0, 99]
    assert select_steps(plain(5), THRESHOLD, 5) == [0, 1, 2, 3, 4]
    assert select_steps(plain(0), THRESHOLD, 5) == []
