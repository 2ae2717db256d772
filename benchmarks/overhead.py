"""What CoreVital costs: plain and instrumented runs of one generation, alternating in one process.

    python -m benchmarks.overhead [--model ID] [--device cpu|cuda] [--tokens 50] [--batch 1]
                                  [--different] [--turns]

Each pair runs the same generation with the same seed, plain and instrumented, in alternating order,
or, with ``--turns``, at the same time in one thread, taking turns at every token: a fraction of the
pairs then says as much on a machine that is not quiet, and also where the time goes. Each pair is
then two generations of both, of which either has the first turn once. Printed are the milliseconds
a token, and the median of the pairs' ratios with its quartiles. ``--modes plain`` compares plain
runs with plain ones, which shows how far the ratios can be trusted. Tokens must be equal, or the
benchmark fails.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.turns import Patches, take_turns
from corevital import CoreVitalInstrumentor
from scripts.smollm2 import safetensors_folder

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "Write a short story about a lighthouse keeper who finds a message in a bottle."
MODES = ("off", "summary", "on_risk", "full")
Array = NDArray[np.float64]
EAGER = "eager with output flags"
PLAIN = "plain"
_TOKENS_IN_A_PART = 50


class Ratios(NamedTuple):
    """Milliseconds a token of both sides, and the ratio of each pair.

    ``turns`` has the seconds of both sides' turns, where they took turns.
    """

    plain: list[float]
    other: list[float]
    ratio: list[float]
    turns: list[tuple[Array, Array]]

    def add(self, plain: float, other: float) -> None:
        """A pair's milliseconds a token."""
        self.plain.append(plain)
        self.other.append(other)
        self.ratio.append(other / plain)


@contextmanager
def instrumented(mode: str) -> Iterator[None]:
    """Instrument inside the block, with a real SDK pipeline behind it; not at all if plain."""
    if mode == PLAIN:
        yield
        return
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    meters = MeterProvider([InMemoryMetricReader()])
    instrumentor = CoreVitalInstrumentor()
    instrumentor.instrument(tracer_provider=provider, meter_provider=meters, capture=mode)
    try:
        yield
    finally:
        instrumentor.uninstrument()
        provider.shutdown()
        meters.shutdown()


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """Use eager attention inside the block, as capture by output flags needs it."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)


class Benchmark:
    """One model and one generation."""

    def __init__(self, options: argparse.Namespace) -> None:
        folder = options.model or str(safetensors_folder())
        tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder).to(options.device)
        self.device, self.tokens = options.device, options.tokens
        conversations = [
            [{"role": "user", "content": f"{PROMPT} Give it the number {row}."}]
            if options.different
            else [{"role": "user", "content": PROMPT}]
            for row in range(options.batch)
        ]
        tokenizer.padding_side = "left"
        prompts: Any = tokenizer.apply_chat_template(
            conversations,
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        self.inputs = {name: value.to(options.device) for name, value in prompts.items()}
        self.pairs, self.turns = options.pairs, options.turns

    def generate(self, **flags: Any) -> torch.Tensor:
        """The same tokens at every call."""
        torch.manual_seed(0)
        length = {"max_new_tokens": self.tokens, "min_new_tokens": self.tokens}
        result = self.model.generate(
            **self.inputs, **length, **flags, do_sample=True, temperature=0.7
        )
        sequences: torch.Tensor = getattr(result, "sequences", result)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return sequences

    def timed(self, run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
        """Milliseconds a token, and the tokens."""
        started = time.perf_counter()
        result = run()
        return (time.perf_counter() - started) * 1e3 / self.tokens, result

    def compare(self, name: str) -> Ratios:
        """Pairs of plain and other runs."""
        return self.compare_by_turns(name) if self.turns else self.compare_by_runs(name)

    def compare_by_turns(self, name: str) -> Ratios:
        """Pairs of runs that take turns at every token."""
        ratios = Ratios([], [], [], [])
        patches = Patches()
        with instrumented(name):
            for pair in range(self.pairs + 1):
                first, second = (
                    self.seconds_of_turns(name, patches, each) for each in (True, False)
                )
                if pair > 0:  # the first pair warms up
                    plain, other = (first + second) / 2
                    ratios.add(*(side.sum() * 1e3 / self.tokens for side in (plain, other)))
                    ratios.turns.append((plain, other))
        return ratios

    def seconds_of_turns(self, name: str, patches: Patches, plain_first: bool) -> Array:
        """Of each turn of the plain and of the other side, ``[2, turns]``."""
        plain, other = take_turns(self.generate, patches, self.device, plain_first=plain_first)
        if not torch.equal(other.tokens, plain.tokens):
            raise SystemExit(f"{name}: the tokens differ")
        return np.array((plain.seconds, other.seconds))

    def compare_by_runs(self, name: str) -> Ratios:
        """Pairs of runs after each other, each first in every second pair."""
        flags: dict[str, Any] = {}
        if name == EAGER:
            flags = {"return_dict_in_generate": True, "output_logits": True}
            flags |= {"output_hidden_states": True, "output_attentions": True}
        ratios = Ratios([], [], [], [])
        for pair in range(self.pairs + 1):
            with ExitStack() as order:
                other_first = pair % 2 == 1
                if not other_first:
                    plain, expected = self.timed(self.generate)
                order.enter_context(
                    eager_attention(self.model) if name == EAGER else instrumented(name)
                )
                other, observed = self.timed(lambda: self.generate(**flags))
            if other_first:
                plain, expected = self.timed(self.generate)
            if name != EAGER and not torch.equal(observed, expected):
                raise SystemExit(f"{name}: the tokens differ")
            if pair > 0:  # the first pair warms up
                ratios.add(plain, other)
        return ratios


def turns_table(name: str, turns: list[tuple[Array, Array]]) -> Table:
    """Where in a generation the time goes.

    The same turn of every pair does the same work: what is added up are the medians over pairs of
    each turn, so that what holds up a few turns has no part in it.
    """
    seconds = np.array(turns)
    plain = np.median(seconds[:, 0], axis=0)
    more = np.median(seconds[:, 1] - seconds[:, 0], axis=0)
    last = len(plain) - 1
    parts = [("to the first token", slice(0, 1))]
    for first in range(1, last, _TOKENS_IN_A_PART):
        stop = min(first + _TOKENS_IN_A_PART, last)
        parts.append((f"tokens {first + 1} to {stop}", slice(first, stop)))
    parts += [("after the last token", slice(last, last + 1)), ("all", slice(None))]
    table = Table(title=f"{name}: sums of each turn's median of {len(turns)} pairs")
    for column in ("part", "plain ms", "more ms", "ratio"):
        table.add_column(column, justify="left" if column == "part" else "right")
    for part, at in parts:
        of_plain, of_more = plain[at].sum(), more[at].sum()
        table.add_row(
            part,
            f"{of_plain * 1e3:.1f}",
            f"{of_more * 1e3:.1f}",
            f"x{1 + of_more / of_plain:.3f}",
        )
    return table


def main() -> None:
    """Print one row for each way of observing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, fetched once")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tokens", type=int, default=50)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument(
        "--different", action="store_true", help="a prompt of its own for each row of the batch"
    )
    parser.add_argument(
        "--turns", action="store_true", help="take turns at every token, not every generation"
    )
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--modes", nargs="+", choices=[PLAIN, *MODES, EAGER])
    options = parser.parse_args()
    if options.turns and EAGER in (options.modes or ()):
        parser.error(f"--turns cannot compare '{EAGER}', which is another model in the meantime")
    modes = options.modes or ([*MODES] if options.turns else [*MODES, EAGER])
    benchmark = Benchmark(options)
    prompt_tokens = benchmark.inputs["input_ids"].shape[1]
    rows = f"{options.batch} different" if options.different else str(options.batch)
    table = Table(
        title=f"{rows} x ({prompt_tokens} + {options.tokens} tokens), {options.device}, "
        f"{torch.get_num_threads()} threads, {options.pairs} pairs"
    )
    for column in ("capture", "plain ms/token", "observed ms/token", "ratio", "quartiles"):
        table.add_column(column, justify="left" if column == "capture" else "right")
    parts: list[Table] = []
    for name in modes:
        ratios = benchmark.compare(name)
        if ratios.turns:
            parts.append(turns_table(name, ratios.turns))
        low, middle, high = statistics.quantiles(ratios.ratio, n=4)
        table.add_row(
            name,
            f"{statistics.median(ratios.plain):.2f}",
            f"{statistics.median(ratios.other):.2f}",
            f"x{middle:.3f}",
            f"x{low:.3f} to x{high:.3f}",
        )
    Console().print(table, *parts)


if __name__ == "__main__":
    main()
