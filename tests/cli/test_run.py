"""``corevital run`` from end to end, on real models."""

from __future__ import annotations

import json
import re
import signal
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin

from corevital.cli.arguments import DEFAULT_TRACE_FILE
from scripts.smollm2 import gguf_file
from tests.cli.conftest import Command, finished, process
from tests.cli.test_json_report import SCHEMA, assert_matches
from tests.models import GenerativeModel
from tests.smollm2 import LoadedModel

QUESTION = "What is the capital of France?"
SECTIONS = (
    *("Summary", "Risk", "Health", "Signals", "Warning", "Entropy", "Surprise", "Layers"),
    *("Prompt", "Captured", "Timing", "Trace"),
)


def spans(path: str | Path = DEFAULT_TRACE_FILE) -> list[dict[str, Any]]:
    """The spans in a trace file."""
    return [
        span
        for line in Path(path).read_text(encoding="utf-8").splitlines()
        for resource_spans in json.loads(line)["resourceSpans"]
        for scope_spans in resource_spans["scopeSpans"]
        for span in scope_spans["spans"]
    ]


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    """A span's attributes; arrays as their OTLP/JSON."""
    return {pair["key"]: next(iter(pair["value"].values())) for pair in span["attributes"]}


def greedy_text(smollm2: LoadedModel, message: str, tokens: int) -> str:
    """What the uninstrumented model answers."""
    inputs = smollm2.chat(message)
    output = smollm2.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    answer = output[0, inputs["input_ids"].shape[1] :]
    return str(smollm2.tokenizer.decode(answer, skip_special_tokens=True))


def test_the_text_is_the_models_own_and_the_report_follows_it(
    ask: Command, smollm2: LoadedModel
) -> None:
    status, out, err = ask("--prompt", QUESTION, "--max-new-tokens", "8")

    assert status == 0
    assert err.startswith("Loading ")
    assert out.startswith(greedy_text(smollm2, QUESTION, 8) + "\n\nCoreVital")
    assert [line.split()[0] for line in out.splitlines() if re.match(r"[A-Z]\w+  ", line)] == [
        "CoreVital",
        *SECTIONS,
    ]


def test_the_report_fits_a_terminal_and_is_plain_where_there_is_none(ask: Command) -> None:
    _, out, _ = ask()

    assert max(len(line) for line in out.splitlines()) <= 80
    assert all(character.isprintable() or character == "\n" for character in out)
    assert not any(line.endswith(" ") for line in out.splitlines())


def test_the_trace_is_appended_to_a_file(ask: Command) -> None:
    _, first, _ = ask()
    _, second, _ = ask()

    found = spans()
    assert [span["traceId"] in first for span in found] == [True, False]
    assert [span["traceId"] in second for span in found] == [False, True]
    assert found[0]["name"].startswith("chat ")
    assert attributes(found[0])["gen_ai.usage.output_tokens"] == "4"
    assert "corevital.risk.score" in attributes(found[0])
    assert {event["name"] for event in found[0]["events"]} >= {"corevital.step"}


def test_the_file_may_be_another(ask: Command, tmp_path: Path) -> None:
    status, out, _ = ask("--trace-file", "other.jsonl")

    assert status == 0
    assert "appended to other.jsonl" in out
    assert len(spans(tmp_path / "other.jsonl")) == 1
    assert not (tmp_path / DEFAULT_TRACE_FILE).exists()


def test_a_file_that_cannot_be_written_fails_after_the_report(ask: Command) -> None:
    status, out, err = ask("--trace-file", "no/folder/traces.jsonl")

    assert status == 1
    assert "Risk" in out
    assert "not all of the telemetry was delivered" in out
    assert err.endswith("cannot write no/folder/traces.jsonl: No such file or directory\n")


def test_json_is_all_there_is_on_standard_output(ask: Command, smollm2: LoadedModel) -> None:
    status, out, _ = ask("--json", "--prompt", QUESTION, "--max-new-tokens", "8")
    report = json.loads(out)

    assert status == 0
    assert_matches(report, SCHEMA)
    assert report["prompt"]["text"] == QUESTION
    assert report["prompt"]["chat_template"]
    assert report["text"] == greedy_text(smollm2, QUESTION, 8)
    assert "".join(token["text"] for token in report["tokens"]).startswith(report["text"])
    assert all(token["entropy"] >= 0 for token in report["tokens"])
    assert report["timing"]["capture"] > 0
    (span,) = spans()
    assert (report["trace_id"], report["span_id"]) == (span["traceId"], span["spanId"])
    assert report["risk"]["score"] == attributes(span)["corevital.risk.score"]


def test_sampling_is_repeatable_with_a_seed_and_traces_differ_all_the_same(ask: Command) -> None:
    sampling = ("--json", "--max-new-tokens", "12", "--temperature", "1.5", "--top-k", "50")
    one, same, other = (
        json.loads(ask(*sampling, "--top-p", "0.95", "--seed", seed).out) for seed in "778"
    )

    assert one["text"] == same["text"] != other["text"]
    assert len({run["trace_id"] for run in (one, same, other)}) == 3
    requested = attributes(spans()[0])
    assert requested["gen_ai.request.temperature"] == 1.5
    assert requested["gen_ai.request.top_k"] == "50"
    assert requested["gen_ai.request.top_p"] == 0.95


@pytest.mark.parametrize("option", [("--temperature", "0.7"), ("--top-k", "5"), ("--top-p", "0.9")])
def test_any_word_about_sampling_switches_it_on(ask: Command, option: tuple[str, str]) -> None:
    ask(*option, "--max-new-tokens", "1", "--capture", "off")

    assert f"gen_ai.request.{option[0][2:].replace('-', '_')}" in attributes(spans()[0])


def test_the_capture_mode_is_chosen_on_the_command_line(
    ask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "off")

    from_environment = json.loads(ask("--json").out)
    from_option = json.loads(ask("--json", "--capture", "summary").out)

    assert from_environment["capture"]["mode"] == "off"
    assert from_environment["risk"] is None
    assert from_option["capture"]["mode"] == "summary"
    assert from_option["capture"]["prompt"]["available"] is False


def test_what_would_hide_the_run_does_not_apply(
    ask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_ENABLED", "false")
    monkeypatch.setenv("COREVITAL_CAPTURE_RATIO", "0")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")

    assert json.loads(ask("--json").out)["risk"] is not None


def test_a_wrong_setting_in_the_environment_is_wrong_usage(
    ask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_CAPTURE", "everything")

    status, out, err = ask()

    assert (status, out) == (2, "")
    assert err.startswith("corevital: error: COREVITAL_CAPTURE='everything'")
    assert err.count("\n") == 1


def test_a_switched_off_sdk_is_wrong_usage(ask: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")

    status, _, err = ask()

    assert status == 2
    assert "OTEL_SDK_DISABLED=true" in err


def test_more_tokens_than_the_model_can_hold_are_wrong_usage(ask: Command) -> None:
    status, out, err = ask("--max-new-tokens", "9000")

    assert (status, out) == (2, "")
    assert "exceed the 8192 tokens that the model can hold" in err


def test_a_model_without_a_chat_template_continues_the_prompt(
    corevital: Command, tiny_folder: Callable[..., str]
) -> None:
    folder = tiny_folder("gpt2")
    status, out, _ = corevital(
        *("run", "--model", folder, "--prompt", "word5 word6", "--max-new-tokens", "3", "--json")
    )
    report = json.loads(out)

    assert status == 0
    assert report["prompt"]["tokens"] == 2
    assert not report["prompt"]["chat_template"]
    assert spans()[0]["name"].startswith("text_completion ")


def test_an_encoder_decoder_answers_too(
    corevital: Command, tiny_folder: Callable[..., str]
) -> None:
    run = ("run", "--model", tiny_folder("t5"), "--prompt", "word5 word6", "--max-new-tokens", "3")
    status, text, _ = corevital(*run)
    report = json.loads(corevital(*run, "--json").out)

    assert status == 0
    assert len(report["text"].split()) == 3
    assert text.startswith(report["text"])
    assert report["prompt"]["tokens"] == 2


def test_a_broken_model_is_seen_to_be_broken(
    corevital: Command, tiny_folder: Callable[..., str]
) -> None:
    def break_it(model: GenerativeModel) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(float("nan"))

    folder = tiny_folder("llama", break_it)
    run = ("run", "--model", folder, "--prompt", "word5 word6", "--max-new-tokens", "3")
    status, text, _ = corevital(*run)
    report = json.loads(corevital(*run, "--json").out)

    assert status == 0
    assert "1.00 critical" in text
    assert "nan_or_inf: NaN or Inf" in text
    assert "!!!" in text
    assert [token["entropy"] for token in report["tokens"]] == [None] * 3
    assert report["flags"]["nan_or_inf"]


def test_weights_that_a_checkpoint_lacks_are_warned_of(
    corevital: Command, tiny_folder: Callable[..., str]
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tiny_folder("llama")
    weights = load_file(f"{folder}/model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})

    status, _, err = corevital(
        *("run", "--model", folder, "--prompt", "word5", "--max-new-tokens", "2")
    )

    assert status == 0
    assert "warning: the checkpoint lacks 1 weights, which are now random: model.layers.1" in (
        " ".join(err.split())
    )


def test_a_folder_that_is_no_model_is_a_failure_in_one_line(
    corevital: Command, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text("{}")

    status, out, err = corevital("run", "--model", str(tmp_path), "--prompt", "Hi")

    assert (status, out) == (1, "")
    assert re.search(rf"^corevital: error: cannot load {tmp_path.name}: ", err, re.MULTILINE)
    assert "Traceback" not in err


def test_debug_adds_the_traceback(corevital: Command, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")

    status, _, err = corevital("run", "--model", str(tmp_path), "--prompt", "Hi", "--debug")

    assert status == 1
    assert "Traceback" in err
    assert "corevital: error: cannot load" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_a_failure_in_one_line(ask: Command) -> None:
    status, out, err = ask("--device", "cuda")

    assert (status, out) == (1, "")
    assert f"--device cuda: this PyTorch ({torch.__version__}) finds no CUDA device" in err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_cuda_is_used_where_there_is_one(ask: Command) -> None:
    assert json.loads(ask("--json").out)["model"]["device"] == "cuda:0"


def test_a_gguf_file_runs_under_its_own_name_and_quietly(corevital: Command) -> None:
    status, out, err = corevital(
        *("run", "--model", str(gguf_file()), "--prompt", QUESTION, "--max-new-tokens", "4"),
        *("--capture", "summary"),
    )

    assert status == 0
    assert "CoreVital  SmolLM2-135M-Instruct.Q4_1, 30 layers" in out
    assert err == "Loading SmolLM2-135M-Instruct.Q4_1 ...\n"
    assert spans()[0]["name"] == "chat SmolLM2-135M-Instruct.Q4_1"


def test_afterwards_nothing_is_instrumented(ask: Command) -> None:
    before = GenerationMixin.generate
    ask()

    assert GenerationMixin.generate is before


def test_the_report_can_be_drawn_as_svg(ask: Command, tmp_path: Path) -> None:
    status, out, _ = ask("--svg", "report.svg", "--prompt", "1 < 2 & 3?")

    picture = ElementTree.parse(tmp_path / "report.svg")
    drawn = "".join(picture.getroot().itertext()).replace("\xa0", " ")
    trace = re.search(r"[0-9a-f]{32}", out)
    assert status == 0
    assert picture.getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert trace is not None
    for shown in ("> 1 < 2 & 3?", "CoreVital", "Risk", trace.group()):
        assert shown in drawn


def test_a_picture_that_cannot_be_written_is_a_failure(ask: Command) -> None:
    status, _, err = ask("--svg", "no/folder/report.svg")

    assert status == 1
    assert err.endswith("error: cannot write no/folder/report.svg: No such file or directory\n")


def test_it_runs_as_a_module_and_writes_only_text(smollm2_folder: str) -> None:
    status, out, err = finished(
        process("run", "--model", smollm2_folder, "--prompt", "Hi", "--max-new-tokens", "4")
    )

    assert status == 0
    assert out.startswith("Hello!")
    assert "\x1b" not in out + err
    assert err.count("\n") == 1


def test_a_terminal_that_lacks_characters_ends_nothing(smollm2_folder: str) -> None:
    status, out, _ = finished(
        process(
            *("run", "--model", smollm2_folder, "--max-new-tokens", "4"),
            *("--prompt", "Answer with one word only: café"),
            PYTHONIOENCODING="ascii",
        )
    )

    assert status == 0
    assert out.isascii()
    assert "CoreVital" in out


def test_an_interrupted_run_still_reports(smollm2_folder: str) -> None:
    story = ("--prompt", "Tell a long story.", "--max-new-tokens", "4000")
    with process("run", "--model", smollm2_folder, *story) as running:
        assert running.stdout is not None
        first = running.stdout.read(20)
        running.send_signal(signal.SIGINT)
        status, rest, err = finished(running)

    assert status == 130
    assert first.strip()
    assert re.search(r"\n\nCoreVital", rest)
    assert re.search(r"\d+ tokens in .*, interrupted", rest)
    assert "appended to" in rest
    assert "Traceback" not in err
    assert len(spans()) == 1


def test_a_reader_that_goes_away_ends_the_run_quietly(smollm2_folder: str) -> None:
    story = ("--prompt", "Tell a long story.", "--max-new-tokens", "400")
    with process("run", "--model", smollm2_folder, *story) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.read(1)
        running.stdout.close()

        assert running.wait(60) == 1
        assert running.stderr.read().count("\n") == 1
