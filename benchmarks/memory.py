"""Peak memory of a long prompt, plain and with prompt telemetry.

    python -m benchmarks.memory [--prompts 512 2000] [--new-tokens 8] [--device cpu|cuda]

Every measurement is a process of its own. On a CPU the peak is that of the resident set (Linux),
reset after the model is loaded and warm; on CUDA that of the allocator.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from opentelemetry.sdk.trace import TracerProvider
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM

from corevital import CoreVitalInstrumentor
from scripts.smollm2 import safetensors_folder

# glibc keeps freed memory for later use; so told, it gives every large block back at once, and the
# resident set is what is really in use.
RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}

MODES = ("plain", "without prompt telemetry", "full")


def resident_bytes(field: str) -> int:
    """``VmRSS`` or its peak ``VmHWM``."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{field} is not in /proc/self/status: this benchmark needs Linux")


def measure(mode: str, prompt_tokens: int, new_tokens: int, device: str) -> int:
    """Peak bytes above those before the generation."""
    model: Any = AutoModelForCausalLM.from_pretrained(safetensors_folder())
    model.to(device)
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(100, 40_000, (1, prompt_tokens), generator=generator).to(device)
    arguments = {"max_new_tokens": new_tokens, "min_new_tokens": new_tokens, "do_sample": False}
    if mode != "plain":
        CoreVitalInstrumentor().instrument(
            tracer_provider=TracerProvider(),
            prompt=mode == "full",
            prompt_max_tokens=prompt_tokens,
        )
    model.generate(prompt[:, :16], **arguments)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")
        before = resident_bytes("VmRSS")
        model.generate(prompt, **arguments)
        return resident_bytes("VmHWM") - before
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model.generate(prompt, **arguments)
    return torch.cuda.max_memory_allocated() - before


def main() -> None:
    """Print one row for each prompt length."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2000])
    parser.add_argument("--new-tokens", type=int, default=8)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", nargs=2, metavar=("MODE", "PROMPT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        mode, prompt = options.measure
        print(json.dumps(measure(mode, int(prompt), options.new_tokens, options.device)))
        return
    table = Table(title=f"Peak MiB above the loaded model, {options.device}")
    for column in ("prompt tokens", *MODES, "prompt telemetry adds"):
        table.add_column(column, justify="right")
    for prompt in options.prompts:
        peaks = {}
        for mode in MODES:
            command = [
                sys.executable,
                "-m",
                "benchmarks.memory",
                *sys.argv[1:],
                "--measure",
                mode,
                str(prompt),
            ]
            finished = subprocess.run(
                command,
                check=True,
                stdout=subprocess.PIPE,
                text=True,
                env=os.environ | RETURN_MEMORY,
            )
            peaks[mode] = int(finished.stdout.splitlines()[-1]) / 2**20
        added = peaks["full"] - peaks["plain"]
        table.add_row(str(prompt), *(f"{peak:.0f}" for peak in peaks.values()), f"{added:+.0f}")
    Console().print(table)


if __name__ == "__main__":
    main()
