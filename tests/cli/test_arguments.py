"""What may be typed, and what is answered to what may not."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from corevital.cli.arguments import CalibrateOptions, CalibrateRiskOptions, RunOptions, parse
from corevital.record import CaptureMode
from corevital.version import __version__
from tests.cli.conftest import Command, finished, process

LEAST = ("run", "--model", "gpt2", "--prompt", "Once")


def test_a_model_and_a_prompt_are_enough() -> None:
    assert parse(LEAST) == RunOptions(
        model="gpt2",
        prompt="Once",
        max_new_tokens=128,
        device="auto",
        temperature=None,
        top_k=None,
        top_p=None,
        seed=None,
        capture=None,
        otlp_endpoint=None,
        trace_file="corevital-traces.jsonl",
        calibration=None,
        json=False,
        svg=None,
        debug=False,
    )


def test_everything_can_be_said() -> None:
    options = parse(
        [
            *LEAST,
            *("--max-new-tokens", "7", "--device", "cpu", "--temperature", "0.5"),
            *("--top-k", "40", "--top-p", "0.9", "--seed", "1", "--capture", "on_risk"),
            *("--otlp-endpoint", "http://collector:4317", "--trace-file", "t.jsonl"),
            *("--calibration", "a.json", "--calibration", "b.json"),
            *("--json", "--svg", "r.svg", "--debug"),
        ]
    )

    assert isinstance(options, RunOptions)

    assert (options.max_new_tokens, options.device, options.seed) == (7, "cpu", 1)
    assert (options.temperature, options.top_k, options.top_p) == (0.5, 40, 0.9)
    assert options.capture is CaptureMode.ON_RISK
    assert options.otlp_endpoint == "http://collector:4317"
    assert (options.trace_file, options.svg) == ("t.jsonl", "r.svg")
    assert options.calibration == ["a.json", "b.json"]
    assert options.json
    assert options.debug


def test_a_model_prompts_and_an_output_are_enough_to_calibrate() -> None:
    arguments = ["calibrate", "--model", "gpt2", "--prompts", "p.txt", "--out", "b.json"]

    assert parse(arguments) == CalibrateOptions(
        model="gpt2",
        prompts="p.txt",
        out="b.json",
        limit=None,
        restart=False,
        max_new_tokens=128,
        device="auto",
        temperature=None,
        top_k=None,
        top_p=None,
        seed=None,
        debug=False,
    )


def test_a_model_labels_and_an_output_are_enough_to_calibrate_risk() -> None:
    arguments = ["calibrate-risk", "--model", "gpt2", "--labels", "l.jsonl", "--out", "r.json"]

    least = CalibrateRiskOptions(
        model="gpt2",
        prompts="l.jsonl",
        out="r.json",
        diagram=None,
        force=False,
        limit=None,
        restart=False,
        max_new_tokens=128,
        device="auto",
        temperature=None,
        top_k=None,
        top_p=None,
        seed=None,
        debug=False,
    )
    assert parse(arguments) == least
    more = ("--diagram", "r.png", "--force", "--restart", "--limit", "300", "--seed", "4")
    assert parse([*arguments, *more]) == replace(
        least, diagram="r.png", force=True, restart=True, limit=300, seed=4
    )


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--max-new-tokens", "0"), "'0' is not a whole number of at least 1"),
        (("--max-new-tokens", "many"), "'many' is not a whole number of at least 1"),
        (("--temperature", "0"), "'0' is not a number above 0"),
        (("--temperature", "nan"), "'nan' is not a number above 0"),
        (("--temperature", "inf"), "'inf' is not a number above 0"),
        (("--top-k", "1.5"), "'1.5' is not a whole number of at least 1"),
        (("--top-p", "1.01"), "'1.01' is not a number above 0 and at most 1"),
        (("--seed", "-1"), "'-1' is not a whole number from 0 to 4294967295"),
        (("--seed", "4294967296"), "is not a whole number from 0 to 4294967295"),
        (("--capture", "all"), "'all' is none of full, summary, on_risk, off"),
        (("--device", "tpu"), "invalid choice: 'tpu'"),
        (("--prompt", ""), "argument --prompt: must not be empty"),
        (("--prompt", " \n"), "argument --prompt: must not be empty"),
        (("--model", ""), "argument --model: must not be empty"),
        (("--color",), "unrecognized arguments: --color"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    corevital: Command, wrong: tuple[str, ...], said: str
) -> None:
    status, out, err = corevital(*LEAST, *wrong)

    assert status == 2
    assert out == ""
    assert said in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [(), ("walk",), ("run",), ("run", "--model", "gpt2"), ("calibrate",), ("calibrate-risk",)],
)
def test_a_command_without_what_it_needs_is_wrong_usage(
    corevital: Command, arguments: tuple[str, ...]
) -> None:
    status, _, err = corevital(*arguments)

    assert status == 2
    assert "--help" in err
    assert err.count("\n") == 1


def test_the_version_is_told(corevital: Command) -> None:
    assert corevital("--version") == (0, f"corevital {__version__}\n", "")


def test_help_names_every_option_and_the_exit_statuses(corevital: Command) -> None:
    status, out, _ = corevital("run", "--help")

    assert status == 0
    for option in (
        *("--model", "--prompt", "--max-new-tokens", "--device", "--temperature", "--top-k"),
        *("--top-p", "--seed", "--capture", "--otlp-endpoint", "--trace-file", "--json", "--svg"),
    ):
        assert option in out
    assert "exit status" in out
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in out


def test_help_comes_at_once_because_torch_is_not_loaded_for_it() -> None:
    started = time.monotonic()
    status, out, err = finished(process("--help"))
    elapsed = time.monotonic() - started

    assert (status, err) == (0, "")
    assert "corevital run --model" in out
    # Half a second on a quiet machine; torch alone takes longer than this on any.
    assert elapsed < 1.0
