"""On an accelerator, CoreVital says of a generation what it says on the host.

The accelerator is pretended: what is on it cannot be mixed with what is on the host, and what is
brought to the host without waiting does not arrive. A share of the architectures is tried, all with
``--zoo=full``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.end_to_end.apps import accelerated_zoo
from tests.end_to_end.test_several_devices import approximately
from tests.instrumentation import TIMES
from tests.zoo.architectures import in_this_release, zoo

ROOT = Path(__file__).parents[2]
SHARES: Final = 12
# What steps of the same value are told by: the first of them, which rounding decides.
TOLD_BY_RANK: Final = {"corevital.narrative", "corevital.fingerprint.vector"}
_NO_MEMORY: Final = "Could not run 'aten::empty_strided'"
_NO_LSTM: Final = "Could not run 'aten::_thnn_fused_lstm_cell'"
NOT_RUN: Final = {
    "blenderbot-BlenderbotForCausalLM": _NO_MEMORY,
    "blenderbot-BlenderbotForConditionalGeneration": _NO_MEMORY,
    "kyutai_speech_to_text-KyutaiSpeechToTextForConditionalGeneration": _NO_MEMORY,
    "musicgen-MusicgenForConditionalGeneration": _NO_LSTM,
    "musicgen_melody-MusicgenMelodyForConditionalGeneration": _NO_LSTM,
    "switch_transformers-SwitchTransformersForConditionalGeneration": "RecursionError",
    "whisper-WhisperForConditionalGeneration": _NO_MEMORY,
}
"""What of the accelerator cannot be pretended, for the architectures that need it."""

pytestmark = in_this_release


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "architecture" in metafunc.fixturenames:
        metafunc.parametrize("architecture", tried(metafunc.config))


def tried(config: pytest.Config) -> list[str]:
    return [str(each) for each in zoo()][:: 1 if config.getoption("zoo") == "full" else SHARES]


@pytest.fixture(scope="module")
def results(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, Any]]:
    """What is generated and said of it, by architecture."""
    written = tmp_path_factory.mktemp("accelerator") / "results.json"
    command = [sys.executable, "-m", accelerated_zoo.__name__, str(written)]
    subprocess.run([*command, *tried(pytestconfig)], cwd=ROOT, check=True)
    found: dict[str, dict[str, Any]] = json.loads(written.read_text())
    return found


def test_an_accelerator_shows_what_the_host_shows(
    architecture: str, results: dict[str, dict[str, Any]]
) -> None:
    result = results[architecture]
    if "not_run" in result:
        assert NOT_RUN[architecture] in result["not_run"]
        pytest.skip(result["not_run"])
    assert "raised" not in result
    assert result["observed"] == result["plain"]
    assert len(result["said"]) == len(result["said_on_host"])
    for said, expected in zip(result["said"], result["said_on_host"], strict=True):
        assert set(said) == set(expected)
        for name in set(said) - TIMES - TOLD_BY_RANK:
            assert said[name] == approximately(expected[name]), name
