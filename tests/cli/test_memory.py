"""A machine without enough memory for the model."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.cli.conftest import SOURCES

# The libraries are loaded before the limit, so that only the model meets it. The automatic classes
# alone would load no model's code; that brings most of transformers, and scipy where there is one.
LIMITED = """
import resource, sys
import corevital.cli.run
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer
from transformers import LlamaForCausalLM
from corevital.cli import main

pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 200 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_too_little_memory_is_a_failure_in_one_line(smollm2_folder: str) -> None:
    run = ("run", "--model", smollm2_folder, "--prompt", "Hi", "--device", "cpu")
    ended = subprocess.run(
        [sys.executable, "-c", LIMITED, *run],
        capture_output=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONPATH": str(SOURCES)},
        timeout=120,
        check=False,
    )

    assert ended.returncode == 1
    assert "corevital: error: not enough memory (" in ended.stderr
    assert "Traceback" not in ended.stderr
