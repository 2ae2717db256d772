"""``corevital calibrate-risk`` from end to end, on a tiny model whose failures are made up.

Running the prompts does not depend on the labels, so they are run once, and every test goes on from
there with labels of its own.
"""

from __future__ import annotations

import functools
import io
import json
import random
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationMixin

from corevital.calibration import evaluate
from corevital.calibration.fit_risk import FOLDS
from corevital.calibration.load import read_calibration
from corevital.calibration.risk import RiskCalibration
from corevital.cli import main
from tests.cli.conftest import Command, Finished, save_tiny
from tests.models import VOCABULARY, GenerativeModel

OUT, DIAGRAM, LABELS = Path("risk.json"), Path("risk.png"), Path("labels.jsonl")
JOURNAL = Path("risk.json.partial.jsonl")
RUNS, TOKENS = 120, 5
SHORT, LONG = 4, 12

CalibrateRisk = Callable[..., Finished]


def is_long(number: int) -> bool:
    return number % 2 == 1


def prompts() -> list[str]:
    words = random.Random(0)
    return [
        " ".join(
            f"word{words.randrange(3, VOCABULARY)}" for _ in range(LONG if is_long(n) else SHORT)
        )
        for n in range(RUNS)
    ]


def label(failed: Sequence[bool], path: Path = LABELS) -> None:
    objects = [
        {"prompt": prompt, "failed": each} for prompt, each in zip(prompts(), failed, strict=False)
    ]
    path.write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")


def tossed() -> list[bool]:
    """Labels that have nothing to do with the runs."""
    coin = random.Random(1)
    return [coin.random() < 0.5 for _ in range(RUNS)]


class Refused(NamedTuple):
    """A command that ran all prompts and wrote no calibration."""

    finished: Finished
    folder: Path
    model: str


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> Refused:
    """The command with tossed labels; nothing can rank what chance decided."""
    folder = tmp_path_factory.mktemp("refused")
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        model = save_tiny(folder, "llama")
        err.truncate(0)
        label(tossed())
        common = ("--model", model, "--labels", str(LABELS), "--out", str(OUT))
        status = main(("calibrate-risk", *common, "--max-new-tokens", str(TOKENS)))
    return Refused(Finished(status, out.getvalue(), err.getvalue()), folder, model)


@pytest.fixture
def run(corevital: Command, refused: Refused, working_folder: Path) -> CalibrateRisk:
    """The same command in another folder; what is given again replaces what is given here."""
    label(tossed())

    def run(*arguments: str) -> Finished:
        common = ("--model", refused.model, "--labels", str(LABELS), "--out", str(OUT))
        return corevital("calibrate-risk", *common, "--max-new-tokens", str(TOKENS), *arguments)

    return run


@pytest.fixture
def go_on(run: CalibrateRisk, refused: Refused) -> CalibrateRisk:
    """The same command, with all prompts run."""
    shutil.copy(refused.folder / JOURNAL, JOURNAL)
    return run


def journal_entries(path: Path = JOURNAL) -> list[dict[str, Any]]:
    _, *lines = path.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["value"] for line in lines]


def written() -> RiskCalibration:
    content = read_calibration(OUT).content
    assert isinstance(content, RiskCalibration)
    return content


def aurocs(table: str) -> dict[str, float]:
    """Of each score, from what was printed."""
    rows = re.findall(r"^(\S.*?) {2,}(\d\.\d{3})(?: |$)", table, re.MULTILINE)
    return {name: float(auroc) for name, auroc in rows}


def count_calls(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, interrupted_at: int = 0
) -> list[int]:
    """Count calls, and interrupt one of them."""
    function, calls = getattr(owner, name), [0]

    @functools.wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == interrupted_at:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    return calls


def test_refuses_what_ranks_no_better_than_another_score(refused: Refused) -> None:
    status, out, err = refused.finished
    found = aurocs(out)
    best = max((name for name in found if "calibrated," not in name), key=found.__getitem__)

    assert status == 1
    assert best != "calibrated"
    assert err.splitlines()[-1] == (
        f"corevital: error: the calibrated score ranks held-out runs no better than {best} alone: "
        f"AUROC {found['calibrated']:.3f} against {found[best]:.3f}; nothing is written (--force "
        "writes it, without new runs)"
    )
    left = {path.name for path in refused.folder.glob("risk*")}
    assert left == {JOURNAL.name}
    assert len(journal_entries(refused.folder / JOURNAL)) == RUNS


def test_every_score_is_compared_on_the_same_folds(refused: Refused) -> None:
    out = refused.finished.out

    assert out.startswith(f"{RUNS} runs of {RUNS} prompts, {sum(tossed())} of which failed\n")
    assert f"On held-out prompts ({FOLDS} folds)" in out
    assert aurocs(out).keys() == {
        "calibrated",
        "calibrated, from logits, last layer, hidden, attention",
        "calibrated, from logits, last layer",
        "calibrated, from logits",
        "published heuristic",
        "uncalibrated default",
        *("surprisal.sum", "surprisal.mean", "surprisal.max", "entropy.mean", "entropy.max"),
        *("margin_deficit.mean", "margin_deficit.max", "rauq"),
        *("top_k_mass_deficit.mean", "top_k_mass_deficit.max"),
    }


def test_force_writes_it_without_new_runs(
    go_on: CalibrateRisk, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    generated = count_calls(monkeypatch, GenerationMixin, "generate")
    status, out, err = go_on("--force")

    assert status == 0
    assert generated == [0]
    assert f"Going on after {RUNS} of {RUNS} prompts" in err
    assert "warning: the calibrated score ranks held-out runs no better than " in err
    assert out.startswith(refused.finished.out)
    assert written().evaluation.calibrated
    assert DIAGRAM.read_bytes().startswith(b"\x89PNG\r\n")
    assert not JOURNAL.exists()


def test_writes_what_ranks_better_and_how_it_was_made(
    go_on: CalibrateRisk, refused: Refused, corevital: Command
) -> None:
    label([is_long(number) for number in range(RUNS)])
    status, out, err = go_on("--diagram", "d.png")

    assert status == 0
    assert "warning" not in err
    assert f"risk.json: risk calibration of tiny-llama, {OUT.stat().st_size / 1000:.0f} kB" in out
    assert Path("d.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert {path.name for path in Path().iterdir()} == {OUT.name, "d.png", LABELS.name}
    made = written()
    assert (made.runs, made.failures) == (RUNS, RUNS // 2)
    assert made.model.name == "tiny-llama"
    assert made.conditions.max_new_tokens == TOKENS
    assert made.capture.model_dump() == {"mode": "full", "top_k": 10}
    assert made.created_with.keys() == {"corevital", "torch", "transformers", "scikit-learn"}
    assert made.evaluation.folds == FOLDS
    assert next(iter(made.evaluation.calibrated.values())).auroc > 0.95
    assert aurocs(out)["calibrated"] > 0.95
    assert made.evaluation.others.keys() >= {"heuristic", "uncalibrated", "rauq"}

    unseen = random.Random(2)
    scores = []
    for length in (SHORT, LONG):
        prompt = " ".join(f"word{unseen.randrange(3, VOCABULARY)}" for _ in range(length))
        ask = ("run", "--model", refused.model, "--prompt", prompt, "--max-new-tokens", str(TOKENS))
        result = json.loads(corevital(*ask, "--calibration", str(OUT), "--json").out)
        assert result["risk"]["source"] == "calibrated"
        scores.append(result["risk"]["score"])
    assert scores[0] < 0.3
    assert scores[1] > 0.7


def test_an_interrupted_command_goes_on_to_the_same_runs(
    run: CalibrateRisk, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        count_calls(patch, GenerationMixin, "generate", interrupted_at=5)
        status, out, err = run()
    assert (status, out) == (130, "")
    assert f"interrupted after 4 of {RUNS} prompts; the same command goes on from there" in err
    assert len(journal_entries()) == 4

    with monkeypatch.context() as patch:
        generated = count_calls(patch, GenerationMixin, "generate")
        count_calls(patch, evaluate, "fit_scorer", interrupted_at=3)
        status, _, err = run()
    assert status == 130
    assert generated == [RUNS - 4]
    assert err.endswith(
        "corevital: error: interrupted; all runs are kept, and the same command goes on from "
        "there\n"
    )
    assert JOURNAL.read_bytes() == (refused.folder / JOURNAL).read_bytes()
    assert not OUT.exists()


def test_the_texts_are_those_of_the_model_and_are_graded(
    go_on: CalibrateRisk, refused: Refused
) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(refused.model)
    tokenizer = AutoTokenizer.from_pretrained(refused.model)
    texts = [entry["text"] for entry in journal_entries()]
    for prompt, text in list(zip(prompts(), texts, strict=True))[:3]:
        inputs = tokenizer(prompt, return_tensors="pt").input_ids
        output = model.generate(inputs, max_new_tokens=TOKENS, do_sample=False)
        assert text == tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True)

    # Some texts are empty.
    right = [number for number, text in enumerate(texts) if text][:7]
    answers = [text.split()[-1] if n in right else "word" for n, text in enumerate(texts)]
    objects = [
        {"prompt": prompt, "answers": ["no", answer]}
        for prompt, answer in zip(prompts(), answers, strict=True)
    ]
    LABELS.write_text("\n".join(map(json.dumps, objects)), encoding="utf-8")
    status, out, err = go_on()

    assert (status, out) == (1, "")
    assert f"{RUNS - 7} runs failed and 7 did not; needed are 100 runs" in err
    assert JOURNAL.exists()


def test_other_prompts_do_not_go_on_with_it(go_on: CalibrateRisk) -> None:
    status, _, err = go_on("--limit", "110")

    assert status == 2
    assert "keeps an unfinished run with other prompts: " in err


def test_neither_capture_nor_calibration_of_the_environment_matters(
    run: CalibrateRisk, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "summary")
    monkeypatch.setenv("COREVITAL_CALIBRATION", "none.json")
    count_calls(monkeypatch, GenerationMixin, "generate", interrupted_at=3)

    assert run().status == 130
    assert journal_entries() == journal_entries(refused.folder / JOURNAL)[:2]


def test_runs_with_nan_are_left_out(run: CalibrateRisk, tmp_path: Path) -> None:
    def damage(model: GenerativeModel) -> None:
        with torch.no_grad():
            model.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))

    status, out, err = run("--model", save_tiny(tmp_path, "llama", damage), "--limit", "100")

    assert (status, out) == (1, "")
    reason = "logits that are not finite or were not observed"
    assert err.count(f" is left out: {reason}\n") == 100
    assert "0 runs failed and 0 did not; needed are 100 runs, " in err
    assert err.endswith(f"; left out: 100 for {reason}\n")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (("--limit", "99"), "99 prompts; a risk calibration needs at least 100 labelled runs"),
        (("--labels", "none.jsonl"), "cannot read none.jsonl: No such file or directory"),
        (("--out", "."), "--out . is a folder"),
        (("--diagram", "none/d.png"), "--diagram none/d.png: there is no folder none"),
        (("--out", "r.png"), "the calibration and its diagram cannot both be r.png"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_loaded(
    wrong: tuple[str, ...], said: str, run: CalibrateRisk
) -> None:
    assert run(*wrong) == Finished(2, "", f"corevital: error: {said}\n")


def test_labels_that_cannot_do_are_told_before_anything_is_loaded(run: CalibrateRisk) -> None:
    label([number < 19 for number in range(RUNS)])

    assert run() == Finished(
        2,
        "",
        "corevital: error: 19 runs failed and 101 did not; needed are 100 runs, at least 20 of "
        "either kind\n",
    )


def test_a_line_without_a_label_is_named(run: CalibrateRisk) -> None:
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    lines[6] = '{"prompt": "word5"}'
    LABELS.write_text("\n".join(lines), encoding="utf-8")

    assert run() == Finished(
        2, "", 'corevital: error: labels.jsonl, line 7 has not either "answers" or "failed"\n'
    )


def test_messages_need_a_model_with_a_chat_template(run: CalibrateRisk) -> None:
    lines = LABELS.read_text(encoding="utf-8").splitlines()
    lines[6] = '{"messages": [{"role": "user", "content": "word5"}], "failed": true}'
    LABELS.write_text("\n".join(lines), encoding="utf-8")
    status, _, err = run()

    assert status == 2
    assert "labels.jsonl, line 7 has messages, and the model has no chat template\n" in err
    assert not JOURNAL.exists()


@pytest.mark.parametrize("missing", ["sklearn", "matplotlib"])
def test_what_has_to_be_installed_is_said_before_anything_is_run(
    missing: str, run: CalibrateRisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    status, out, err = run()

    assert (status, out) == (1, "")
    assert err.count("\n") == 1
    assert missing in err
    assert err.endswith('pip install "corevital[calibrate]"\n')
