"""A record as named numbers: whole groups of them, or none."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given

from corevital.calibration.estimators import RAUQ, estimators
from corevital.calibration.features import (
    ATTENTION,
    GROUPS,
    HIDDEN,
    LAST_LAYER,
    LOGITS,
    PROMPT,
    features,
    flat,
)
from corevital.record import GenerationRecord
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record
from tests.assess.test_properties import records
from tests.calibration.labelled import SUMMARY, tiny_records, without
from tests.models import GenerativeModel, tiny_model
from tests.smollm2 import LoadedModel

Groups = dict[str, dict[str, float]]


def of(generation: GenerationRecord) -> Groups:
    return features(generation, estimators(generation))


def names(found: Groups) -> list[str]:
    return list(flat(found))


def with_hidden(made: GenerationRecord, **columns: Any) -> GenerationRecord:
    assert made.hidden is not None
    return replace(made, hidden=replace(made.hidden, **columns))


def generate(loaded: LoadedModel, capture: str) -> GenerationRecord:
    inputs = loaded.chat("What is the capital of Italy?")
    [found] = tiny_records(
        loaded.model, range(1), capture, prompt=lambda _: inputs["input_ids"], tokens=6
    )
    return found


def test_full_capture_has_every_group(tiny_runs: list[GenerationRecord]) -> None:
    assert tuple(of(tiny_runs[0])) == GROUPS


def test_a_summary_has_the_logits_and_the_last_layer(
    tiny: GenerativeModel, tiny_runs: list[GenerationRecord]
) -> None:
    [summary] = tiny_records(tiny, range(1), "summary")

    found, of_full = of(summary), of(tiny_runs[0])

    assert tuple(found) == SUMMARY
    for group in SUMMARY:
        assert found[group] == pytest.approx(of_full[group], rel=1e-5, abs=1e-6)


def test_so_it_is_with_a_real_model(smollm2: LoadedModel) -> None:
    full, summary = of(generate(smollm2, "full")), of(generate(smollm2, "summary"))

    assert tuple(full) == GROUPS
    assert tuple(summary) == SUMMARY
    for group in SUMMARY:
        assert summary[group] == pytest.approx(full[group], rel=1e-4, abs=1e-5)


def test_they_do_not_depend_on_the_number_of_layers(tiny_runs: list[GenerationRecord]) -> None:
    [deeper] = tiny_records(tiny_model("llama", num_hidden_layers=11), range(1), "full")

    assert names(of(deeper)) == names(of(tiny_runs[0]))


def test_a_model_without_attention_has_the_other_groups() -> None:
    [found] = tiny_records(tiny_model("mamba"), range(1), "full")

    groups = of(found)

    assert {LOGITS, LAST_LAYER, HIDDEN} <= set(groups)
    assert ATTENTION not in groups
    assert not any(name.startswith("attention.") for name in groups[LAST_LAYER])


@pytest.mark.parametrize(
    ("part", "groups"),
    [
        ("logits", {LAST_LAYER, HIDDEN, ATTENTION, PROMPT}),
        ("hidden", {LOGITS, ATTENTION, PROMPT}),
        ("attention", {LOGITS, LAST_LAYER, HIDDEN, PROMPT}),
    ],
)
def test_a_part_that_was_not_observed_has_no_features(
    tiny_runs: list[GenerationRecord], part: str, groups: set[str]
) -> None:
    assert set(of(without(tiny_runs[0], part))) == groups


def test_layers_that_were_not_observed_at_the_start_leave_the_last_layer(
    tiny_runs: list[GenerationRecord],
) -> None:
    """So it is when capture becomes full in the middle of a run."""
    made = tiny_runs[0]
    assert made.hidden is not None
    norms = made.hidden.l2_norm.copy()
    norms[:2, :-1] = np.nan

    assert set(of(with_hidden(made, l2_norm=norms))) == {*GROUPS} - {HIDDEN}


def test_a_step_that_was_not_observed_is_left_out(tiny_runs: list[GenerationRecord]) -> None:
    made = tiny_runs[0]
    assert made.hidden is not None
    norms, cosine = made.hidden.l2_norm.copy(), made.hidden.last_layer_cosine.copy()
    norms[1], cosine[2] = np.nan, np.nan
    kept = [0, *range(2, made.steps)]

    found = of(with_hidden(made, l2_norm=norms, last_layer_cosine=cosine))

    logs = np.log(made.hidden.l2_norm[kept].astype(float))
    assert found[HIDDEN]["l2_norm.early.mean"] == pytest.approx(logs[:, 0].mean())
    assert found[HIDDEN]["l2_norm.early.spread"] == pytest.approx(logs[:, 0].std())
    assert found[LAST_LAYER]["l2_norm.mean"] == pytest.approx(logs[:, -1].mean())
    assert found[LAST_LAYER]["cosine.mean"] == pytest.approx(np.nanmean(cosine[1:]))


@pytest.mark.parametrize("value", [np.inf, -np.inf])
def test_a_group_with_an_infinite_value_is_missing(
    tiny_runs: list[GenerationRecord], value: float
) -> None:
    made = tiny_runs[0]
    assert made.hidden is not None
    mean = made.hidden.mean.copy()
    mean[1, 0] = value

    # The last layer is another.
    assert set(of(with_hidden(made, mean=mean))) == {*GROUPS} - {HIDDEN}


def test_thirds_of_the_layers() -> None:
    """Seven layers: two, two and three."""
    random = np.random.default_rng(0)
    norms, means = random.uniform(1, 9, (5, 7)), random.normal(size=(5, 7))
    made = with_hidden(
        record(hidden=hidden_columns(norms)),
        **{name: norms.astype(np.float32) for name in ("std", "max_abs")},
        mean=means.astype(np.float32),
    )

    found = of(made)[HIDDEN]

    for third, layers in {"early": [0, 1], "middle": [2, 3], "late": [4, 5, 6]}.items():
        for name, column in {"l2_norm": np.log(norms), "mean": means}.items():
            part = column[:, layers]
            assert [
                found[f"{name}.{third}.{statistic}"]
                for statistic in ("mean", "spread", "first", "over_layers")
            ] == pytest.approx(
                [
                    part.mean(),
                    part.mean(axis=1).std(),
                    part[0].mean(),
                    part.std(axis=1).mean(),
                ],
                rel=1e-5,
                abs=1e-6,
            )


def attention_of(collapsed: list[list[int]], **keywords: Any) -> dict[str, float]:
    """Features of three layers with 4, 8 and 8 heads."""
    made = attention_columns(collapsed, heads=[4, 8, 8], **keywords)
    zeros: dict[str, Any] = {
        name: np.zeros((len(collapsed), 3), dtype=np.float32)
        for name in (
            *("entropy_min", "entropy_max", "normalized_entropy_mean"),
            *("concentration_max", "concentration_min"),
        )
    }
    return of(record(attention=replace(made, **zeros)))[ATTENTION]


def test_heads_are_shares_of_each_layer() -> None:
    found = attention_of([[1, 2, 4], [3, 2, 0]])

    assert found["collapsed_share.early.mean"] == 0.5
    assert found["collapsed_share.middle.first"] == 0.25
    assert found["collapsed_share.late.spread"] == 0.25


def test_heads_that_were_not_observed_are_not_zero() -> None:
    found = attention_of([[2, 8, 4], [0, 0, 0]], observed=[[True] * 3, [False] * 3])

    assert found["collapsed_share.early.mean"] == 0.5
    assert found["collapsed_share.middle.mean"] == 1.0


@pytest.mark.parametrize("layers", [1, 2])
def test_fewer_layers_than_thirds_have_no_thirds(layers: int) -> None:
    [found] = tiny_records(tiny_model("llama", num_hidden_layers=layers), range(1), "full")

    assert {LOGITS, LAST_LAYER} <= set(of(found)) <= {LOGITS, LAST_LAYER, PROMPT}


def test_a_single_step_has_every_group_but_no_change() -> None:
    made = tiny_records(tiny_model("llama"), range(1), "full", tokens=1)[0]

    found = of(made)

    assert tuple(found) == GROUPS
    assert "cosine.mean" not in found[LAST_LAYER]
    assert found[LOGITS]["entropy.first"] == found[LOGITS]["entropy.last"]
    assert found[HIDDEN]["l2_norm.late.spread"] == 0.0


def test_logits_by_hand() -> None:
    found = of(
        record(
            logits=logit_columns(
                entropy=[1.0, 3.0, 2.0],
                surprisal=[2.0, 4.0, 0.0],
                margin=[0.5, 0.25, 0.75],
                top_k_mass=[1.0, 0.5, 0.75],
            )
        )
    )[LOGITS]

    assert found["length"] == pytest.approx(math.log(3))
    assert found["log.surprisal.sum"] == pytest.approx(math.log(6))
    assert found["entropy.mean"] == 2.0
    assert found["entropy.std"] == pytest.approx(math.sqrt(2 / 3))
    assert (found["entropy.first"], found["entropy.last"]) == (1.0, 2.0)
    assert found["surprisal.worst"] == 4.0
    assert found["margin.worst"] == 0.25
    assert found["top_k_mass.worst"] == 0.5


def test_of_the_prompt_the_end_counts_by_itself(tiny_runs: list[GenerationRecord]) -> None:
    surprisal = np.arange(50, dtype=np.float32)
    made = tiny_runs[0]
    made = replace(made, prompt=replace(made.prompt, surprisal=surprisal))

    found = of(made)[PROMPT]

    assert found["surprisal.mean"] == pytest.approx(24.5)
    assert found["surprisal.recent.mean"] == pytest.approx(39.5)
    assert found["surprisal.recent.max"] == 49.0


def test_the_attention_on_the_token_before_belongs_to_attention(
    tiny_runs: list[GenerationRecord],
) -> None:
    found = of(tiny_runs[0])

    assert [name for name in names(found) if RAUQ in name] == [f"{ATTENTION}.log.{RAUQ}"]


@given(records())
def test_of_any_record_they_are_finite(generation: GenerationRecord) -> None:
    with np.errstate(all="raise"):
        found = of(generation)

    assert set(found) <= set(GROUPS)
    assert all(found.values())
    assert all(type(value) is float and math.isfinite(value) for value in flat(found).values())
    if not generation.steps:
        assert found == {}
