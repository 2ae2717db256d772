"""A run is reduced to buckets of what was observed, and to nothing of what was not."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np

from corevital.calibration import sketch
from corevital.calibration.quantities import Key, Run, run_of
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record
from tests.calibration.runs import healthy_record


def values(run: Run, key: Key) -> list[float]:
    buckets = run.aligned([key])[:, 0]
    return np.where(buckets == sketch.NONE, np.nan, sketch.VALUES[buckets]).tolist()


def test_every_quantity_is_there_at_every_layer() -> None:
    keys = run_of(healthy_record(0, layers=2)).keys

    assert keys == (
        *(Key("entropy"), Key("margin"), Key("surprisal")),
        *(Key("hidden.l2_norm", 0), Key("hidden.l2_norm", 1)),
        *(Key("attention.entropy", 0), Key("attention.entropy", 1)),
        *(Key("attention.collapsed_heads", 0), Key("attention.collapsed_heads", 1)),
    )


def test_values_are_those_of_the_record() -> None:
    made = healthy_record(0)
    run = run_of(made)

    assert made.logits is not None
    assert made.hidden is not None
    np.testing.assert_allclose(values(run, Key("entropy")), made.logits.entropy, rtol=0.0101)
    np.testing.assert_allclose(
        values(run, Key("hidden.l2_norm", 2)), made.hidden.l2_norm[:, 2], rtol=0.0101
    )


def test_layers_keep_their_numbers() -> None:
    run = run_of(record(hidden=hidden_columns([[1.0, 2.0]], layers=[3, 7])))

    assert run.keys == (Key("hidden.l2_norm", 3), Key("hidden.l2_norm", 7))


def test_collapsed_heads_that_were_not_observed_are_not_zero() -> None:
    attention = attention_columns([[1], [0]], observed=[[True], [False]])
    run = run_of(record(attention=attention))

    np.testing.assert_allclose(values(run, Key("attention.collapsed_heads", 0)), [1, np.nan], 0.01)


def test_what_is_not_finite_has_no_bucket() -> None:
    run = run_of(record(logits=logit_columns(entropy=[1.0, np.nan, np.inf])))

    assert np.isnan(values(run, Key("entropy"))).tolist() == [False, True, True]


def test_quantities_that_a_run_lacks_have_no_bucket() -> None:
    run = run_of(replace(healthy_record(0), hidden=None))

    assert np.isnan(values(run, Key("hidden.l2_norm", 0))).all()
    assert np.isfinite(values(run, Key("margin"))).all()


def test_a_record_without_observations_has_no_keys() -> None:
    assert run_of(record()).keys == ()


def test_survives_being_written_as_json() -> None:
    run = run_of(healthy_record(0, steps=3))
    read = Run.from_json(json.loads(json.dumps(run.to_json())))

    assert read.keys == run.keys
    assert (read.buckets == run.buckets).all()
    empty = Run.from_json(json.loads(json.dumps(run_of(record()).to_json())))
    assert (empty.keys, empty.steps) == ((), 0)
