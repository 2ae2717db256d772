"""Planted loops are found where they are; nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from corevital.assess.loops import (
    NEWEST_TOKENS,
    Loop,
    LoopDetector,
    caught_in_loop,
    find_loops,
    longest_loop,
)
from corevital.record import GenerationRecord
from tests.assess.records import hidden_columns, record

LAGS = 64
PERIODS = range(1, LAGS + 1)
Tokens = list[int]


def least_length(period: int) -> int:
    """Tokens of the shortest loop, where states are alike."""
    return max(96, 3 * period)


def other_tokens(count: int, first: int) -> Tokens:
    """Tokens that are found nowhere else."""
    return list(range(first, first + count))


def looping(phrase: Tokens, length: int, *, before: int = 0, after: int = 0) -> Tokens:
    copies = phrase * (length // len(phrase) + 1)
    return other_tokens(before, 10_000) + copies[:length] + other_tokens(after, 20_000)


def states(steps: int, cosine: float = 1.0) -> npt.NDArray[np.float16]:
    """The same cosine at every step and lag."""
    return np.full((steps, LAGS), cosine, dtype=np.float16)


def generated(
    tokens: Tokens, lag_cosine: npt.NDArray[np.floating] | None = None
) -> GenerationRecord:
    hidden = hidden_columns(np.ones((len(tokens), 1)), lag_cosine=lag_cosine)
    return replace(record(hidden=hidden), token_ids=np.asarray(tokens, dtype=np.int64))


def loops(tokens: Tokens, lag_cosine: npt.NDArray[np.floating] | None = None) -> tuple[Loop, ...]:
    return find_loops(generated(tokens, lag_cosine))


def is_primitive(phrase: Tokens) -> bool:
    """Whether it is not itself copies of a shorter phrase."""
    return all(phrase != phrase[shift:] + phrase[:shift] for shift in range(1, len(phrase)))


# What a loop is


@pytest.mark.parametrize("period", PERIODS)
def test_a_loop_of_any_period_is_found_where_it_is(period: int) -> None:
    length = least_length(period) + 7
    tokens = looping(other_tokens(period, 0), length, before=37)

    (loop,) = loops(tokens, states(len(tokens)))

    assert loop == Loop(onset_step=37, period=period, length=length)
    assert loop.repeats == length // period


@given(st.data(), st.integers(0, 150), st.integers(0, 150), st.integers(0, 3), st.booleans())
def test_any_phrase_anywhere(
    data: st.DataObject, before: int, extra: int, after: int, known: bool
) -> None:
    phrase = data.draw(
        st.lists(st.integers(0, 3), min_size=1, max_size=LAGS).filter(is_primitive), label="phrase"
    )
    length = least_length(len(phrase)) * (1 if known else 2) + extra
    tokens = looping(phrase, length, before=before, after=after)

    (loop,) = loops(tokens, states(len(tokens)) if known else None)

    end = before + length if after else None
    assert loop == Loop(before, len(phrase), length, end)


@pytest.mark.parametrize("period", PERIODS)
def test_a_period_of_more_tokens_than_are_looked_back_is_not_found(period: int) -> None:
    assert loops(looping(other_tokens(LAGS + period, 0), 1000)) == ()


@pytest.mark.parametrize("period", PERIODS)
def test_one_token_less_is_no_loop(period: int) -> None:
    phrase, length = other_tokens(period, 0), least_length(period)

    for cosines, least in ((states(1000), length), (None, 2 * length)):
        assert loops(looping(phrase, least - 1, before=9, after=9), cosines) == ()
        assert loops(looping(phrase, least, before=9, after=9), cosines) != ()


@pytest.mark.parametrize("onset", range(LAGS))
def test_the_shortest_loop_is_found_wherever_it_stands(onset: int) -> None:
    tokens = looping(other_tokens(32, 0), 96, before=onset, after=9)

    assert loops(tokens, states(len(tokens))) == (Loop(onset, 32, 96, onset + 96),)


def test_it_goes_on_until_a_token_breaks_off() -> None:
    tokens = looping([5, 6, 7], 151, before=20)

    assert loops([*tokens, 99], states(172)) == (Loop(20, 3, 151, end_step=171),)
    assert loops(tokens, states(171)) == (Loop(20, 3, 151),)


def test_one_changed_token_in_the_middle_makes_two_loops() -> None:
    tokens = looping([5, 6], 300)
    tokens[150] = 99

    first, second = loops(tokens, states(300))

    assert first == Loop(0, 2, 150, end_step=150)
    assert second == Loop(151, 2, 149)


def test_a_phrase_with_a_count_in_it_is_no_loop() -> None:
    tokens = [token for number in range(100) for token in (7, 7, 1000 + number, 8, 9)]

    assert loops(tokens, states(500)) == ()


def test_the_longest_is_the_one_that_matters() -> None:
    tokens = looping([1, 2, 3], 120, after=5) + looping([4, 5], 200)
    found = loops(tokens, states(len(tokens)))

    assert [loop.period for loop in found] == [3, 2]
    assert longest_loop(found) == found[1]
    assert longest_loop(()) is None


# What the states say


@pytest.mark.parametrize("period", [1, 8, 40, 64])
def test_a_loop_in_whose_states_the_model_is_not_caught_has_to_be_twice_as_long(
    period: int,
) -> None:
    tokens = looping(other_tokens(period, 0), 2 * least_length(period))

    assert loops(tokens[:-1], states(len(tokens) - 1, 0.97)) == ()
    assert loops(tokens, states(len(tokens), 0.97)) == (Loop(0, period, len(tokens)),)


def test_states_that_are_alike_at_another_lag_only_say_nothing() -> None:
    tokens = looping([1, 2, 3, 4, 5], 150)
    cosines = states(150, 0.5)
    cosines[:, 5] = 1.0
    assert loops(tokens, cosines) == ()
    cosines[:, 4] = 1.0
    assert loops(tokens, cosines) == (Loop(0, 5, 150),)


def test_a_period_whose_half_the_states_do_not_share_is_not_reported_for_it() -> None:
    tokens = looping([1], 200)
    cosines = states(200, 0.5)
    cosines[:, 1] = 1.0

    assert loops(tokens[:191], cosines) == ()
    assert loops(tokens, cosines) == (Loop(0, 1, 200),)


@pytest.mark.parametrize("period", [5, 50])
def test_the_states_of_a_whole_period_have_to_be_alike(period: int) -> None:
    tokens = looping(other_tokens(period, 0), 180)
    alike = max(32, period)
    cosines = states(180, 0.5)
    cosines[180 - alike :] = 0.99
    assert loops(tokens, cosines) == (Loop(0, period, 180),)
    cosines[180 - alike] = 0.5
    assert loops(tokens, cosines) == ()


# What is no loop


@given(st.integers(0, 2**32 - 1), st.integers(20, 5000), st.floats(0.0, 1.5))
def test_random_streams_have_no_loop(seed: int, vocabulary: int, exponent: float) -> None:
    weights = np.arange(1, vocabulary + 1) ** -exponent  # Zipf's law; uniform at zero
    tokens = np.random.default_rng(seed).choice(vocabulary, 1000, p=weights / weights.sum())

    assert loops(tokens.tolist(), states(1000)) == ()


# Online


@given(
    st.lists(st.integers(0, 2), max_size=40).map(lambda tokens: tokens * 10), st.integers(0, 300)
)
def test_what_is_found_online_is_what_is_found_in_the_text_so_far(
    tokens: Tokens, steps: int
) -> None:
    tokens = tokens[:steps]
    detector = LoopDetector()
    for token in tokens:
        newest = detector.update(token, np.ones(LAGS))

    found = loops(tokens, states(len(tokens)))

    assert found[: len(detector.ended)] == tuple(detector.ended)
    assert found[len(detector.ended) :] == (() if detector.loop is None else (detector.loop,))
    assert not tokens or newest == detector.loop


def test_a_loop_is_told_as_soon_as_it_is_one_and_as_long_as_it_is() -> None:
    detector = LoopDetector()
    told = [
        detector.update(token, np.ones(LAGS))
        for token in looping([1, 2, 3, 4], 100, before=10, after=3)
    ]

    assert [step for step, loop in enumerate(told) if loop is not None] == list(range(105, 110))
    assert told[105] == Loop(10, 4, 96)
    assert told[109] == Loop(10, 4, 100)
    assert detector.ended == [Loop(10, 4, 100, end_step=110)]


# Whatever the record


def smallest_period(tokens: Tokens) -> int:
    return next(p for p in range(1, len(tokens)) if tokens[p:] == tokens[:-p])


@st.composite
def repetitive_streams(draw: st.DrawFn) -> Tokens:
    """Stretches of copies of short phrases of few tokens, one after the other."""
    phrases = st.lists(st.integers(0, 2), min_size=1, max_size=20)
    stretches = st.tuples(phrases, st.integers(1, 130))
    parts = draw(st.lists(stretches, max_size=5))
    return [token for phrase, length in parts for token in looping(phrase, length)]


@given(repetitive_streams())
def test_every_loop_is_a_longest_stretch_of_its_smallest_period(tokens: Tokens) -> None:
    found = loops(tokens, states(len(tokens)))

    for loop in found:
        end = loop.onset_step + loop.length
        assert smallest_period(tokens[loop.onset_step : end]) == loop.period
        assert loop.onset_step == 0 or (
            tokens[loop.onset_step - 1] != tokens[loop.onset_step - 1 + loop.period]
        )
        assert loop.end_step == (end if end < len(tokens) else None)
        assert loop.end_step is None or tokens[end] != tokens[end - loop.period]
        assert loop.length >= least_length(loop.period)
    onsets = [loop.onset_step for loop in found]
    ends = [loop.onset_step + loop.length for loop in found]
    assert onsets == sorted(set(onsets))
    assert ends == sorted(set(ends))


@given(
    arrays.arrays(
        np.int64,
        st.integers(0, 150),
        elements=st.integers(-(2**63), 2**63 - 1) | st.just(0),
        fill=st.just(-1),
    ),
    st.none()
    | arrays.arrays(
        np.float16,
        st.tuples(st.integers(0, 150), st.just(LAGS)),
        elements=st.floats(width=16) | st.just(1.0),
        fill=st.just(np.float16(np.nan)),
    ),
)
def test_nothing_is_raised(
    tokens: npt.NDArray[np.int64], lag_cosine: npt.NDArray[np.float16] | None
) -> None:
    with np.errstate(all="raise"):
        found = loops(tokens.tolist(), lag_cosine)

    assert all(
        0 <= loop.onset_step < loop.onset_step + loop.length <= len(tokens) for loop in found
    )


def test_a_record_without_states_is_judged_by_its_tokens() -> None:
    tokens = np.asarray(looping([1, 2], 200))

    assert find_loops(replace(record(), token_ids=tokens)) == (Loop(0, 2, 200),)


# The same, told from the end of several texts


def first_caught(tokens: Tokens, lag_cosine: npt.NDArray[np.floating] | None) -> int | None:
    """The first step at whose token the text is caught, as far as its newest part tells."""
    ids = np.asarray([tokens])
    for step in range(len(tokens)):
        newest = slice(max(step + 1 - NEWEST_TOKENS, 0), step + 1)
        cosines = None if lag_cosine is None else lag_cosine[max(step + 1 - LAGS, 0) : step + 1]
        caught, _ = caught_in_loop(ids[:, newest], None if cosines is None else cosines[:, None])
        if caught.all():
            return step
    return None


def first_detected(tokens: Tokens, lag_cosine: npt.NDArray[np.floating] | None) -> int | None:
    detector = LoopDetector()
    for step, token in enumerate(tokens):
        if detector.update(token, None if lag_cosine is None else lag_cosine[step]) is not None:
            return step
    return None


@pytest.mark.parametrize("period", [1, 2, 31, 32, 33, 48, 63, 64])
@pytest.mark.parametrize("before", [0, 7])
def test_the_end_of_a_text_tells_a_loop_at_the_same_token(period: int, before: int) -> None:
    tokens = looping(other_tokens(period, 0), 2 * least_length(period), before=before, after=3)
    for lag_cosine in (None, states(len(tokens)), states(len(tokens), 0.9)):
        found = first_caught(tokens, lag_cosine)
        assert found is not None
        assert found == first_detected(tokens, lag_cosine)


@given(st.data())
def test_it_does_in_any_stream_and_with_any_states(data: st.DataObject) -> None:
    tokens = data.draw(repetitive_streams())
    unlike = data.draw(st.sets(st.integers(0, 400), max_size=3))
    lag_cosine = states(len(tokens))
    lag_cosine[[step for step in unlike if step < len(tokens)]] = np.nan
    assert first_caught(tokens, lag_cosine) == first_detected(tokens, lag_cosine)


def test_states_that_are_alike_at_a_multiple_of_the_period_only_say_nothing() -> None:
    tokens = looping([1, 2, 3], 192)
    lag_cosine = states(len(tokens))
    lag_cosine[:, 2] = 0.9
    assert first_caught(tokens, lag_cosine) == first_detected(tokens, lag_cosine) == 191


def test_a_text_is_near_a_loop_before_its_states_can_make_one() -> None:
    tokens = looping(other_tokens(5, 0), 96)
    near = [bool(caught_in_loop(np.asarray([tokens[:end]]))[1][0]) for end in range(1, 97)]
    assert near.index(True) == 94
    assert near[94:] == [True, True]


def test_each_text_is_told_by_itself() -> None:
    looped, random = looping([1, 2, 3], 200), other_tokens(200, 0)
    caught, near = caught_in_loop(np.asarray([random, looped, random]))
    assert caught.tolist() == near.tolist() == [False, True, False]
