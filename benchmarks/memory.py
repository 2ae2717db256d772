"""Peak memory of long prompts, and what a long generation keeps, plain and observed.

    python -m benchmarks.memory [--prompts 512 2048 8192] [--tokens 10000] [--device cpu|cuda]
        [--write]

Every measurement is a process of its own. On a CPU it reads the resident set (Linux), on CUDA the
allocator. Prompts go through SmolLM2-135M-Instruct, the longest through its first layers only,
which take a seventh of the time: a peak is that of one layer. The long generation goes through a
tiny model with random weights, because a token's share of the record depends on layers and heads.
``--write`` replaces ``results/memory.md``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from opentelemetry.sdk.trace import TracerProvider
from transformers import AutoModelForCausalLM, LlamaConfig, StoppingCriteria

from benchmarks.markdown import table
from corevital import CoreVitalInstrumentor, GenerationRecord, Observed
from corevital.capture.prompt import CHUNK_BYTES, MOST_SPARSE_PER_LAYER
from scripts.smollm2 import safetensors_folder

RESULTS: Final = Path(__file__).parent / "results"
MIB: Final = 2**20
# glibc keeps freed memory for later use; so told, it gives every large block back at once, and the
# resident set is what is really in use.
RETURN_MEMORY: Final = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}
PLAIN: Final = "plain"
WITHOUT_PROMPT: Final = "without prompt telemetry"
FULL: Final = "full"
NEW_TOKENS: Final = 8
EARLY: Final = 2500
"""The token at which the long generation is first looked at: scratch memory has its full size."""

LONG: Final = 4096
FIRST_LAYERS: Final = 4
"""Of a prompt longer than ``LONG`` tokens, the layers that it goes through."""

LAYER_CHUNK: Final = 2 * CHUNK_BYTES
"""One layer's attention chunk: scores of ``CHUNK_BYTES``, and as many weights made from them."""
SPARSE_LISTS: Final = 8 * MOST_SPARSE_PER_LAYER
"""One layer's list of weights and their places, of a size that does not depend on the prompt."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes above those before the generation.

    ``peak``, and what was held at token ``EARLY`` and at the last. ``result`` is what was asked
    for, 0 when plain: the arrays of the record, and of a prompt the lists that they are made from.
    """

    peak: int
    early: int
    last: int
    result: int


class Memory:
    """What the process holds, on the host or on CUDA."""

    def __init__(self, device: str) -> None:
        self._cuda = device != "cpu"

    def start(self) -> None:
        """Forget the peak so far."""
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def used(self) -> int:
        """Bytes in use now."""
        return torch.cuda.memory_allocated() if self._cuda else _resident("VmRSS")

    @property
    def peak(self) -> int:
        """Most bytes in use since the start."""
        return torch.cuda.max_memory_allocated() if self._cuda else _resident("VmHWM")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise SystemExit(f"{field} is not in /proc/self/status: this benchmark needs Linux")


class Watch(StoppingCriteria):
    """Never stops; notes what is held at some tokens."""

    def __init__(self, memory: Memory, prompt: int, at: tuple[int, ...]) -> None:
        self._memory = memory
        self._at = {prompt + tokens for tokens in at}
        self.used: list[int] = []

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        """All False."""
        if input_ids.shape[1] in self._at:
            self.used.append(self._memory.used)
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


def tiny_llama(positions: int) -> Any:
    """Two layers, random weights, and as many positions as wanted."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=16,
        num_key_value_heads=2,
        max_position_embeddings=positions,
    )
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval()


def array_bytes(part: Any) -> int:
    """Bytes of all arrays of a record."""
    if isinstance(part, np.ndarray):
        return part.nbytes
    if dataclasses.is_dataclass(part):
        return sum(array_bytes(getattr(part, each.name)) for each in dataclasses.fields(part))
    return 0


def measure(mode: str, prompt_tokens: int, new_tokens: int, device: str) -> Usage:
    """Generate once, greedily; a model is loaded, warm and instrumented before."""
    real = new_tokens == NEW_TOKENS
    model: Any = (
        AutoModelForCausalLM.from_pretrained(safetensors_folder())
        if real
        else tiny_llama(prompt_tokens + new_tokens)
    )
    if real and prompt_tokens > LONG:
        model.model.layers = model.model.layers[:FIRST_LAYERS]
        model.config.num_hidden_layers = FIRST_LAYERS
    model.to(device)
    vocabulary = model.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    prompt = torch.randint(3, vocabulary, (1, prompt_tokens), generator=generator).to(device)
    settings: dict[str, Any] = {"do_sample": False, "attention_mask": torch.ones_like(prompt)}
    records: list[int] = []

    def keep(observed: Observed) -> None:
        record: GenerationRecord = observed.record
        assert record.capture.failures == 0
        records.append(array_bytes(record))

    if mode != PLAIN:
        CoreVitalInstrumentor().instrument(
            tracer_provider=TracerProvider(),
            prompt=mode == FULL,
            prompt_max_tokens=prompt_tokens,
            on_generation=keep,
        )
    model.generate(prompt[:, :16], max_new_tokens=4, do_sample=False)
    memory = Memory(device)
    watch = Watch(memory, prompt_tokens, (min(EARLY, new_tokens - 1), new_tokens))
    memory.start()
    before = memory.used
    model.generate(
        prompt,
        **settings,
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        stopping_criteria=[watch],
    )
    peak = memory.peak - before
    early, last = (used - before for used in watch.used)
    lists = model.config.num_hidden_layers * SPARSE_LISTS if mode == FULL and real else 0
    return Usage(peak, early, last, records[-1] + lists if records else 0)


def measured(mode: str, prompt_tokens: int, new_tokens: int, device: str) -> Usage:
    """``measure`` in a process of its own."""
    arguments = [mode, str(prompt_tokens), str(new_tokens), device]
    finished = subprocess.run(
        [sys.executable, "-m", "benchmarks.memory", "--measure", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | RETURN_MEMORY,
    )
    return Usage(**json.loads(finished.stdout.splitlines()[-1]))


def of_prompts(lengths: list[int], device: str) -> str:
    """Table: what prompt telemetry adds to the peak, and how much it may."""
    rows = []
    for length in lengths:
        usage = {mode: measured(mode, length, NEW_TOKENS, device) for mode in MODES}
        added = usage[FULL].peak - usage[PLAIN].peak
        result = usage[FULL].result
        peaks = [f"{usage[mode].peak / MIB:.1f}" for mode in MODES]
        parts = [f"{each / MIB:.1f}" for each in (LAYER_CHUNK, result, LAYER_CHUNK + result)]
        verdict = "yes" if added <= LAYER_CHUNK + result else "no"
        rows.append([str(length), *peaks, f"{added / MIB:+.1f}", *parts, verdict])
    header = ["prompt tokens", *MODES, "added", "layer's chunk", "result", "bar", "holds"]
    return table(header, rows)


def of_tokens(tokens: int, device: str) -> str:
    """Table: what each further token keeps, and how much of the record it is."""
    usage = {mode: measured(mode, 16, tokens, device) for mode in (PLAIN, FULL)}
    further = tokens - EARLY
    kept = {mode: (each.last - each.early) / further for mode, each in usage.items()}
    record = usage[FULL].result / tokens
    row = [
        str(tokens),
        *(f"{kept[mode]:.0f}" for mode in kept),
        f"{kept[FULL] - kept[PLAIN]:.0f}",
        f"{record:.0f}",
        f"{(usage[FULL].peak - usage[PLAIN].peak) / MIB:+.1f}",
        f"{usage[FULL].result / MIB:.1f}",
    ]
    header = [
        "tokens",
        *(f"{mode}, bytes a token" for mode in kept),
        "added, bytes a token",
        "record, bytes a token",
        "added to the peak, MiB",
        "record, MiB",
    ]
    return table(header, [row])


MODES: Final = (PLAIN, WITHOUT_PROMPT, FULL)


def page(options: argparse.Namespace) -> str:
    """All results, in Markdown."""
    conditions = ", ".join(
        (
            f"device {options.device}",
            f"{torch.get_num_threads()} torch threads",
            *(f"{name} {version(name)}" for name in ("corevital", "torch", "transformers")),
        )
    )
    return f"""# Memory

Written by `python -m benchmarks.memory --write` on {datetime.now(UTC).date()}: {conditions}.

## Prompts

Peak MiB above the loaded model, SmolLM2-135M-Instruct in float32, {NEW_TOKENS} new tokens; prompts
of more than {LONG} tokens through its first {FIRST_LAYERS} layers. The bar for what `full` adds is
one layer's attention chunk, its scores and the weights made from them, and the result: the record,
and the lists of fixed size that its attention weights come in.

{of_prompts(options.prompts, options.device)}

## Tokens

Resident bytes that each token after the first {EARLY} leaves behind; plain, those of the cache. A
model of 2 layers and 16 heads. The peak is reached at the end, when the record is made.

{of_tokens(options.tokens, options.device)}
"""


def main() -> None:
    """Print the tables, and write them when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--tokens", type=int, default=10_000)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        mode, prompt, tokens, device = options.measure
        print(json.dumps(asdict(measure(mode, int(prompt), int(tokens), device))))
        return
    results = page(options)
    print(results)
    if options.write:
        (RESULTS / "memory.md").write_text(results, encoding="utf-8")


if __name__ == "__main__":
    main()
