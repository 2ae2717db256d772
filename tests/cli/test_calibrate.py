"""``corevital calibrate`` from end to end, on tiny models."""

from __future__ import annotations

import functools
import json
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin

from corevital.calibration.baseline import Baseline
from corevital.calibration.load import read_calibration
from corevital.version import __version__
from tests.calibration.test_load import SMOLLM2
from tests.cli.conftest import Command, Finished, finished, process
from tests.models import VOCABULARY, GenerativeModel

OUT = Path("baseline.json")
JOURNAL = Path("baseline.json.partial.jsonl")
PROMPTS = 14

SaveTiny = Callable[..., str]
Calibrate = Callable[..., Finished]


@pytest.fixture
def prompts(working_folder: Path) -> Path:
    path = working_folder / "prompts.txt"
    words = [f"word{3 + number * 7 % (VOCABULARY - 3)}" for number in range(PROMPTS * 4)]
    lines = [" ".join(words[start : start + 4]) for start in range(0, len(words), 4)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture
def model(tiny_folder: SaveTiny) -> str:
    return tiny_folder("llama")


@pytest.fixture
def calibrate(
    corevital: Command, model: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> Calibrate:
    """Calibrate a tiny model; what is given again replaces what is given here."""
    capsys.readouterr()  # The progress of saving the model.

    def run(*arguments: str) -> Finished:
        common = ("--model", model, "--prompts", str(prompts), "--out", str(OUT))
        return corevital("calibrate", *common, "--max-new-tokens", "5", *arguments)

    return run


def written() -> Baseline:
    content = read_calibration(OUT).content
    assert isinstance(content, Baseline)
    return content


def journal_lines() -> list[dict[str, Any]]:
    return [json.loads(line) for line in JOURNAL.read_text(encoding="utf-8").splitlines()]


def interrupt_at(call: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupt that call of ``generate``; the result counts the calls."""
    generate, calls = GenerationMixin.generate, [0]

    @functools.wraps(generate)
    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GenerationMixin, "generate", counted)
    return calls


def test_writes_a_baseline_that_says_how_it_was_made(calibrate: Calibrate, model: str) -> None:
    status, out, err = calibrate()

    assert (status, err) == (0, "Loading tiny-llama ...\n")
    assert f"baseline of tiny-llama, {OUT.stat().st_size / 1000:.0f} kB" in out
    made = written()
    assert f"{made.runs} healthy runs, {made.steps} tokens" in out
    assert made.runs + sum(made.left_out.values()) == PROMPTS
    assert made.model.name == Path(model).name
    assert (made.model.layers, made.model.hidden_size) == (4, 32)
    assert made.capture.model_dump() == {"mode": "full", "top_k": 10}
    assert made.conditions.max_new_tokens == 5
    assert not made.conditions.chat_template
    assert made.created_with["corevital"] == __version__
    assert not JOURNAL.exists()
    assert {path.name for path in Path().glob("baseline.json*")} == {OUT.name}


def test_a_run_of_the_same_model_can_be_compared_with_it(
    calibrate: Calibrate, corevital: Command, model: str
) -> None:
    calibrate()
    ask = ("run", "--model", model, "--prompt", "word5 word9", "--max-new-tokens", "5")
    status, out, _ = corevital(*ask, "--calibration", str(OUT), "--json")

    assert status == 0
    calibration = json.loads(out)["calibration"]
    assert calibration["baseline"]["id"] == read_calibration(OUT).id
    assert 0.0 <= calibration["baseline"]["divergence"] <= 1.0
    assert calibration["refused"] is None
    assert "Baseline" in corevital(*ask, "--calibration", str(OUT)).out


def test_an_interrupted_command_goes_on_to_the_same_result(
    calibrate: Calibrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = ("--temperature", "1.5", "--seed", "7")
    assert calibrate(*sampled).status == 0
    whole = written()
    OUT.unlink()

    with monkeypatch.context() as patch:
        interrupt_at(5, patch)
        status, out, err = calibrate(*sampled)
    assert (status, out) == (130, "")
    assert err.endswith(
        f"corevital: error: interrupted after 4 of {PROMPTS} prompts; the same command goes on "
        "from there\n"
    )
    assert not OUT.exists()
    assert len(journal_lines()) == 1 + 4

    with monkeypatch.context() as patch:
        calls = interrupt_at(0, patch)
        status, _, err = calibrate(*sampled)
    assert status == 0
    assert f"Going on after 4 of {PROMPTS} prompts" in err
    assert calls[0] == PROMPTS - 4
    resumed = written()
    assert resumed.model_copy(update={"created": whole.created}) == whole


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (("--max-new-tokens", "6"), "max_new_tokens"),
        (("--temperature", "0.5"), "temperature"),
        (("--limit", "12"), "prompts"),
    ],
)
def test_other_settings_do_not_go_on_with_it(
    changed: tuple[str, ...],
    named: str,
    calibrate: Calibrate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        calibrate()
    before = JOURNAL.read_bytes()
    status, _, err = calibrate(*changed)

    assert status == 2
    assert f"keeps an unfinished run with other {named}: " in err
    assert JOURNAL.read_bytes() == before
    assert calibrate(*changed, "--restart").status == 0


def test_another_model_does_not_go_on_with_it(
    calibrate: Calibrate, tiny_folder: SaveTiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(3, patch)
        calibrate()
    status, _, err = calibrate("--model", tiny_folder("qwen2"))

    assert status == 2
    assert "unfinished run with other model: " in err


def test_a_signal_interrupts_it(model: str, prompts: Path) -> None:
    command = ("calibrate", "--model", model, "--prompts", str(prompts), "--out", str(OUT))
    started = process(*command, "--max-new-tokens", "600")
    until = time.monotonic() + 90
    while not (JOURNAL.exists() and len(JOURNAL.read_bytes().splitlines()) > 1):
        assert started.poll() is None
        assert time.monotonic() < until
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    status, out, err = finished(started)

    assert (status, out) == (130, "")
    assert "the same command goes on from there" in err
    assert "Traceback" not in err


def test_a_prompt_that_fails_is_reported_and_tried_again(
    calibrate: Calibrate, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = prompts.read_text().splitlines()
    lines[2] = " ".join(["word5"] * 2000)
    prompts.write_text("\n".join(lines))
    status, out, err = calibrate()

    assert status == 0
    assert "prompts.txt, line 3 is left out: error: the prompt's 2000 tokens and" in err
    assert "1 for error" in out
    assert written().left_out["error"] == 1


def test_runs_with_nan_are_left_out_and_too_few_are_an_error(
    calibrate: Calibrate, tiny_folder: SaveTiny
) -> None:
    def damage(model: GenerativeModel) -> None:
        with torch.no_grad():
            model.model.layers[2].mlp.down_proj.weight.fill_(math.nan)

    status, out, err = calibrate("--model", tiny_folder("llama", damage))

    assert (status, out) == (1, "")
    assert err.count(" is left out: NaN or Inf\n") == PROMPTS
    assert f"0 healthy runs; a baseline needs at least 10; left out: {PROMPTS} for NaN" in err
    assert not OUT.exists()


def test_too_few_prompts_are_refused_before_anything_is_loaded(calibrate: Calibrate) -> None:
    status, out, err = calibrate("--limit", "9")

    assert (status, out) == (2, "")
    assert err == "corevital: error: 9 prompts; a baseline needs at least 10 healthy runs\n"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--prompts", "none.txt"), "cannot read none.txt: No such file or directory"),
        (("--out", "."), "--out . is a folder"),
        (("--out", "none/b.json"), "--out none/b.json: there is no folder none"),
    ],
)
def test_files_that_cannot_be_used_are_named(
    wrong: tuple[str, str], said: str, calibrate: Calibrate
) -> None:
    assert calibrate(*wrong) == Finished(2, "", f"corevital: error: {said}\n")


def test_neither_capture_nor_calibration_of_the_environment_matters(
    calibrate: Calibrate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "summary")
    monkeypatch.setenv("COREVITAL_CALIBRATION", "none.json")

    assert calibrate().status == 0
    layers = {each.layer for each in written().distributions}
    assert layers == {None, 0, 1, 2, 3}


def test_a_calibration_of_another_model_is_an_error_of_the_run(
    corevital: Command, model: str
) -> None:
    ask = ("run", "--model", model, "--prompt", "word5")
    status, out, err = corevital(*ask, "--calibration", str(SMOLLM2))

    assert (status, out) == (2, "")
    assert err.splitlines()[-1].startswith(
        "corevital: error: --calibration: baseline smollm2.json is not applied: made for "
        "SmolLM2-135M-Instruct, and this is another model: its name is tiny-llama, not SmolLM2"
    )


def test_a_calibration_that_is_none_is_an_error_before_anything_is_loaded(
    corevital: Command, model: str, prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    ask = ("run", "--model", model, "--prompt", "word5")
    status, out, err = corevital(*ask, "--calibration", str(prompts))

    assert (status, out) == (2, "")
    assert err.startswith(f"corevital: error: calibration='{prompts}': accepted is a calibration")


def test_a_calibration_of_the_environment_that_does_not_fit_is_shown_and_not_applied(
    corevital: Command, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_CALIBRATION", str(SMOLLM2))
    ask = ("run", "--model", model, "--prompt", "word5", "--max-new-tokens", "4", "--json")
    status, out, err = corevital(*ask)

    assert status == 0
    calibration = json.loads(out)["calibration"]
    assert calibration["baseline"] is None
    assert calibration["refused"].startswith("baseline smollm2.json is not applied: ")
    assert err.count(calibration["refused"]) == 1
