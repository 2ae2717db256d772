"""A baseline learns what runs have in common, and how far they are apart."""

from __future__ import annotations

import numpy as np
import pytest

from corevital.calibration import sketch
from corevital.calibration.build import LEAST_RUNS, TooFewRuns, summarize
from corevital.calibration.quantities import Key, run_of
from tests.assess.records import logit_columns, record
from tests.calibration.runs import healthy_record

RUNS = [run_of(healthy_record(seed, steps=12)) for seed in range(20)]


def test_distributions_are_those_of_all_steps_of_all_runs() -> None:
    found = {each.key: each.every_count() for each in summarize(RUNS).distributions}

    for key in RUNS[0].keys:
        together = np.concatenate([run.aligned([key]) for run in RUNS])
        assert (found[key] == sketch.tally(together)[0]).all()


def test_the_order_of_the_runs_does_not_matter() -> None:
    there, back = summarize(RUNS), summarize(RUNS[::-1])

    assert there.lengths == back.lengths
    assert there.limits == pytest.approx(back.limits)
    for one, other in zip(there.distributions, back.distributions, strict=True):
        assert one.counts == other.counts
        assert one.spread == pytest.approx(other.spread, rel=1e-3)


def test_runs_are_compared_at_every_length_that_enough_of_them_have() -> None:
    short = [run_of(healthy_record(seed, steps=3)) for seed in range(LEAST_RUNS)]
    long = [run_of(healthy_record(seed, steps=9)) for seed in range(LEAST_RUNS - 1)]

    assert summarize(short + long).lengths == [1, 2]
    assert summarize(short + long + long).lengths == [1, 2, 4, 8]


def test_spread_is_how_far_a_run_is_from_the_others() -> None:
    values = [[1.0, 1.0], [3.0, 3.0], *[[2.0, 2.0]] * (LEAST_RUNS - 2)]
    runs = [run_of(record(logits=logit_columns(entropy=each))) for each in values]
    spread = {each.key: each.spread for each in summarize(runs).distributions}[Key("entropy")]

    others = LEAST_RUNS - 1
    # By hand: from its own value to those of the others, on average.
    outer = (1.0 * (others - 1) + 2.0) / others
    inner = (1.0 + 1.0) / others
    expected = np.sqrt((2 * outer**2 + (LEAST_RUNS - 2) * inner**2) / LEAST_RUNS)
    assert spread == pytest.approx([expected, expected], rel=0.02)


def test_what_never_changes_has_the_tolerance_for_its_spread() -> None:
    steady = [run_of(record(logits=logit_columns(entropy=[2.0] * 4)))] * LEAST_RUNS
    (entropy,) = (each for each in summarize(steady).distributions if each.key == Key("entropy"))

    assert entropy.spread == [0.05, 0.05, 0.05]
    assert summarize(steady).limits == [1.0, 1.0, 1.0]


def test_too_few_runs_are_refused() -> None:
    empty = run_of(record())

    with pytest.raises(TooFewRuns, match=f"9 healthy runs; a baseline needs at least {LEAST_RUNS}"):
        summarize([*RUNS[:9], empty])
