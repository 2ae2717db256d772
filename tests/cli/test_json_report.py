"""The report for programs: its keys stay, and it is JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np

from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.cli.export import Delivery
from corevital.cli.json_report import json_report
from corevital.record import PromptColumns
from corevital.version import __version__
from tests.assess.records import floats, hidden_columns, logit_columns, record
from tests.cli.outcomes import ARRIVED, TO_COLLECTOR, calm_record, outcome

NUMBER = (int, float)
AVAILABILITY = {"available": bool, "reason": (str, type(None))}
SCHEMA: dict[str, Any] = {
    "schema_version": int,
    "corevital_version": str,
    "model": {
        "name": str,
        "family": str,
        "architecture": str,
        "layers": (int, type(None)),
        "hidden_size": (int, type(None)),
        "vocabulary_size": (int, type(None)),
        "device": str,
        "dtype": str,
    },
    "prompt": {
        "text": str,
        "tokens": int,
        "chat_template": bool,
        "surprisal": {"mean": (*NUMBER, type(None)), "max": (*NUMBER, type(None))},
        "layer_transformation": (*NUMBER, type(None)),
        "basin": (*NUMBER, type(None)),
    },
    "text": str,
    "finish_reason": (str, type(None)),
    "narrative": str,
    "tokens": [
        {
            "step": int,
            "id": int,
            "text": str,
            "seconds": NUMBER,
            "entropy": (*NUMBER, type(None)),
            "perplexity": (*NUMBER, type(None)),
            "surprisal": (*NUMBER, type(None)),
            "margin": (*NUMBER, type(None)),
            "top_k_mass": (*NUMBER, type(None)),
        }
    ],
    "risk": {
        "score": NUMBER,
        "level": str,
        "source": str,
        "calibration": (str, type(None)),
        "heuristic": NUMBER,
        "factors": [{"name": str, "contribution": NUMBER}],
    },
    "flags": {
        "nan_or_inf": bool,
        "repetition_loop": bool,
        "mid_layer_anomaly": bool,
        "attention_collapse": bool,
        "attention_collapse_severity": NUMBER,
        "high_entropy_steps": int,
    },
    "loops": [
        {
            "onset_step": int,
            "period": int,
            "length": int,
            "end_step": (int, type(None)),
            "repeats": int,
        }
    ],
    "uncertainty": {
        "negative_log_likelihood": (*NUMBER, type(None)),
        "negative_log_likelihood_per_token": (*NUMBER, type(None)),
        "mean_entropy": (*NUMBER, type(None)),
        "max_entropy": (*NUMBER, type(None)),
        "mean_margin": (*NUMBER, type(None)),
        "rauq": (*NUMBER, type(None)),
    },
    "signals": [{"name": str, "severity": NUMBER, "evidence": str}],
    "early_warning": {"score": NUMBER, "signals": [str]},
    "blame": [{"layer": int, "severity": NUMBER, "reasons": [str]}],
    "fingerprint": [NUMBER],
    "consistency": [
        {
            "name": str,
            "step": (int, type(None)),
            "layer": (int, type(None)),
            "values": dict,
            "places": int,
        }
    ],
    "calibration": {"baseline": (dict, type(None)), "refused": (str, type(None))},
    "capture": {
        "mode": str,
        "full_from_step": (int, type(None)),
        "failures": int,
        "logits": AVAILABILITY,
        "hidden": AVAILABILITY,
        "attention": AVAILABILITY,
        "prompt": AVAILABILITY,
        "cross_attention": type(None),
        "encoder_hidden": type(None),
        "encoder_attention": type(None),
        "stop_conditions": [str],
        "stop_unavailable": (str, type(None)),
    },
    "timing": {
        "time_to_first_token": (*NUMBER, type(None)),
        "tokens_per_second": (*NUMBER, type(None)),
        "duration": NUMBER,
        "capture": (*NUMBER, type(None)),
    },
    "trace_id": str,
    "span_id": str,
    "destination": {
        "kind": str,
        "traces": str,
        "endpoints": {},
        "arrived": bool,
        "error": (str, type(None)),
    },
}


def assert_matches(value: Any, schema: Any, where: str = "report") -> None:
    """Check that ``value`` has the keys and types of ``schema``, neither fewer nor more."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        assert value.keys() == schema.keys(), where
        for key, part in schema.items():
            assert_matches(value[key], part, f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for number, item in enumerate(value):
            assert_matches(item, schema[0], f"{where}[{number}]")
    else:
        assert isinstance(value, schema), where


def troubled_run() -> dict[str, Any]:
    """The report of a run with signals, warnings and blamed layers."""
    made = record(
        logits=logit_columns(
            entropy=[6.0] * 6, surprisal=[8.0] * 6, margin=[0.4] * 6, top_k_mass=[0.5] * 6
        ),
        hidden=hidden_columns([[1.0, 2.0]] * 6, non_finite=[[False, True]] * 6),
        basin=[[0.1]],
    )
    return json_report(outcome(made), ARRIVED)


def test_the_keys_and_their_types_are_those_that_are_documented() -> None:
    assert_matches(json_report(outcome(), ARRIVED), SCHEMA)


def test_they_are_the_same_when_something_was_found() -> None:
    report = troubled_run()

    assert_matches(report, SCHEMA)
    assert report["flags"]["nan_or_inf"]
    assert {signal["name"] for signal in report["signals"]} >= {"context_loss"}
    assert report["early_warning"]["signals"]
    assert [layer["layer"] for layer in report["blame"]] == [1]
    assert report["risk"]["level"] == "critical"


def test_it_says_which_version_wrote_it() -> None:
    report = json_report(outcome(), ARRIVED)

    assert (report["schema_version"], report["corevital_version"]) == (1, __version__)


def test_every_token_has_its_statistics() -> None:
    tokens = json_report(outcome(), ARRIVED)["tokens"]

    assert [token["step"] for token in tokens] == [0, 1, 2, 3]
    assert tokens[2]["text"] == " word2"
    assert tokens[2]["seconds"] == 3.0
    assert tokens[2]["entropy"] == 0.5
    assert tokens[2]["perplexity"] == float(floats(math.sqrt(2)))
    assert (tokens[2]["surprisal"], tokens[2]["margin"], tokens[2]["top_k_mass"]) == (0.25, 0.75, 1)


def test_uncertainty_is_that_of_the_whole_sequence() -> None:
    assert json_report(outcome(), ARRIVED)["uncertainty"] == {
        "negative_log_likelihood": 1.0,
        "negative_log_likelihood_per_token": 0.25,
        "mean_entropy": 0.5,
        "max_entropy": 0.5,
        "mean_margin": 0.75,
        "rauq": None,
    }


def test_loops_are_told_with_what_can_be_derived() -> None:
    made = replace(calm_record(401), token_ids=np.asarray([1, 2] * 100 + [3] * 201))
    report = json_report(outcome(made), ARRIVED)

    assert_matches(report, SCHEMA)
    assert report["loops"] == [
        {"onset_step": 0, "period": 2, "length": 200, "repeats": 100, "end_step": 200},
        {"onset_step": 200, "period": 1, "length": 201, "repeats": 201, "end_step": None},
    ]


def test_a_baseline_gives_its_divergence_and_anomalies() -> None:
    anomaly = Anomaly("hidden.l2_norm", (1, 2), 2, Direction.HIGHER, 3.0, "L2 norm higher")
    plain = outcome()
    assert plain.assessment is not None
    found = replace(plain.assessment, divergence=Divergence("m@0", 0.9, (anomaly,)))
    report = json_report(outcome(assessment=found), ARRIVED)

    assert json_report(plain, ARRIVED)["calibration"] == {"baseline": None, "refused": None}
    assert json.loads(json.dumps(report["calibration"])) == {
        "baseline": {
            "id": "m@0",
            "divergence": 0.9,
            "anomalies": [
                {
                    "quantity": "hidden.l2_norm",
                    "layers": [1, 2],
                    "worst_layer": 2,
                    "direction": "higher",
                    "distance": 3.0,
                    "description": "L2 norm higher",
                }
            ],
        },
        "refused": None,
    }


def test_what_is_unknown_is_null_and_never_nan() -> None:
    nothing = math.nan
    made = record(logits=logit_columns(entropy=[nothing, math.inf], surprisal=[nothing, nothing]))
    report = json_report(
        outcome(replace(made, prompt=PromptColumns(surprisal=floats([nothing])))), ARRIVED
    )

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert [token["entropy"] for token in report["tokens"]] == [None, None]
    assert report["prompt"]["surprisal"] == {"mean": None, "max": None}


def test_a_run_that_was_not_observed_has_no_assessment() -> None:
    report = json_report(outcome(replace(calm_record(), logits=None)), ARRIVED)

    parts = ("risk", "flags", "loops", "uncertainty", "signals", "early_warning", "blame")
    assert {report[key] for key in parts} == {None}
    assert report["tokens"][0]["entropy"] is None
    assert report["text"] == "upon a time"


def test_timing_is_in_seconds() -> None:
    timing = json_report(outcome(), ARRIVED)["timing"]

    assert timing == {
        "time_to_first_token": 1.0,
        "tokens_per_second": 1.0,
        "duration": 5.0,
        "capture": 0.25,
    }


def test_an_interrupted_run_says_so() -> None:
    assert json_report(outcome(interrupted=True), ARRIVED)["finish_reason"] == "interrupted"


def test_the_destination_of_the_trace_is_told() -> None:
    to_file = json_report(outcome(), ARRIVED)["destination"]
    lost = json_report(outcome(), Delivery(TO_COLLECTOR, "nobody listens"))["destination"]

    assert (to_file["kind"], to_file["traces"], to_file["arrived"]) == (
        "file",
        "traces.jsonl",
        True,
    )
    assert (lost["kind"], lost["traces"], lost["arrived"]) == (
        "otlp",
        "http://collector:4317",
        False,
    )
    assert lost["error"] == "nobody listens"
    assert lost["endpoints"]["logs"] == {"url": "http://collector:4317", "protocol": "grpc"}
