"""Processes that share a model wait for each other, never for CoreVital."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.batching import IS_CURRENT
from tests.end_to_end.apps import shared_model
from tests.end_to_end.apps.shared_model import TOKENS, generated
from tests.models import HEADS, tiny_model

ROOT = Path(__file__).parents[2]
PROCESSES = 2
PATIENCE_SECONDS = 180

Result = dict[str, Any]
"""Of each of the app's generations: its ``tokens``, ``spans`` and their ``steps``."""


def shared(sharing: str, folder: Path) -> list[Result]:
    """What each process generates with its part of a model."""
    tiny_model("llama", tie_word_embeddings=False).save_pretrained(folder / "model")
    results = folder / "results"
    results.mkdir()
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    app = ["-m", shared_model.__name__, str(folder / "model"), sharing, str(results)]
    subprocess.run(
        [sys.executable, "-m", *launcher, *app],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    return [json.loads((results / f"{rank}.json").read_text()) for rank in range(PROCESSES)]


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Tensor parallelism: every process has a part of every layer."""
    return shared("tensors", tmp_path_factory.mktemp("tensors"))


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Pipeline parallelism: every process has some layers."""
    if not IS_CURRENT:
        pytest.skip("this release divides no layers")
    return shared("layers", tmp_path_factory.mktemp("layers"))


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Fully sharded parameters: every module gathers its own for each forward pass."""
    return shared("parameters", tmp_path_factory.mktemp("parameters"))


@pytest.fixture(scope="module")
def alone() -> Result:
    """What CoreVital says of the same generation, where one process has the whole model."""
    model = tiny_model("llama", tie_word_embeddings=False)
    return generated(model, observed=True, max_new_tokens=TOKENS)


def capture(result: Result, signal: str) -> set[str]:
    """What all spans of a result say about a signal."""
    return {span[f"corevital.capture.{signal}"] for span in result["spans"]}


@pytest.mark.parametrize("sharing", ["tensors", "layers", "parameters"])
def test_all_generate_the_same_wherever_it_is_observed(
    sharing: str, request: pytest.FixtureRequest
) -> None:
    for result in request.getfixturevalue(sharing):
        assert result["observed in one"]["tokens"] == result["plain"]["tokens"]
        assert result["observed in all"]["tokens"] == result["plain"]["tokens"]


@pytest.mark.parametrize("sharing", ["tensors", "layers", "parameters"])
def test_nothing_fails_and_logits_are_those_of_a_whole_model(
    sharing: str, alone: Result, request: pytest.FixtureRequest
) -> None:
    for result in request.getfixturevalue(sharing):
        observed = result["observed in all"]
        assert capture(observed, "logits") == {"captured"}
        assert not any("corevital.capture.failures" in span for span in observed["spans"])
        assert_alike(observed, alone, "corevital.step.entropy", "corevital.step.surprisal")


def assert_alike(result: Result, expected: Result, *names: str) -> None:
    for steps, steps_expected in zip(result["steps"], expected["steps"], strict=True):
        assert len(steps) == len(steps_expected)
        for step, step_expected in zip(steps, steps_expected, strict=True):
            for name in names:
                assert step[name] == pytest.approx(step_expected[name], rel=1e-3, abs=1e-4)


def test_tensor_parallel_layers_show_their_states_but_not_all_heads(
    tensors: list[Result], alone: Result
) -> None:
    reason = f"processes share the model, and this one has {HEADS // 2} of {HEADS} heads"
    for result in tensors:
        observed = result["observed in all"]
        assert capture(observed, "hidden") == capture(observed, "prompt") == {"captured"}
        assert capture(observed, "attention") == {f"unavailable: {reason}"}
        assert_alike(observed, alone, "corevital.step.hidden.l2_norm.mean")


def test_layers_that_other_processes_have_are_not_guessed(layers: list[Result]) -> None:
    reason = f"unavailable: the layers are divided among {PROCESSES} processes"
    for result in layers:
        for signal in ("hidden", "attention", "prompt"):
            assert capture(result["observed in all"], signal) == {reason}


def test_gathered_parameters_show_everything_but_the_surprisal_of_the_prompt(
    parameters: list[Result], alone: Result
) -> None:
    for result in parameters:
        observed = result["observed in all"]
        for signal in ("hidden", "attention", "prompt"):
            assert capture(observed, signal) == {"captured"}
        assert_alike(
            observed,
            alone,
            "corevital.step.hidden.l2_norm.mean",
            "corevital.step.attention.entropy.mean",
        )
        assert "corevital.prompt.surprisal.mean" in alone["spans"][0]
        assert "corevital.prompt.surprisal.mean" not in observed["spans"][0]


@pytest.mark.parametrize("sharing", ["tensors", "layers", "parameters"])
def test_no_process_stops_while_others_wait_for_it(
    sharing: str, request: pytest.FixtureRequest
) -> None:
    one, other = request.getfixturevalue(sharing)
    for result in (one, other):
        assert result["loop to be stopped in one"]["tokens"] == result["loop"]["tokens"]
    reason = "processes share the model, and none can stop alone"
    for span in one["loop to be stopped in one"]["spans"]:
        assert span["corevital.intervention.unavailable"] == reason
        assert "corevital.intervention.reason" not in span
