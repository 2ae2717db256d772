"""Generates with two models in four threads, for as many seconds as are asked for.

Writes to a JSON file what was done, which records were not those of the same generation alone, and
what grew in the second half of the time.
"""

from __future__ import annotations

import dataclasses
import gc
import itertools
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from opentelemetry.sdk.trace import TracerProvider

from corevital import GenerationRecord, Observed
from tests.instrumentation import counted, instrumented
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import in_memory_telemetry
from tests.smollm2 import load
from tests.telemetry.generating import AfterStep, OnToken

THREADS = 4
TOKENS = 6

_GENERATION = ("corevital.", "torch.", "opentelemetry.trace.", "opentelemetry.sdk.trace.")

Job = Callable[[], object]


class Interruption(Exception):
    """What a user's own code raises in the middle of a generation."""


def jobs(model: GenerativeModel) -> dict[str, Job]:
    """Generations whose tokens do not depend on random numbers."""

    def generate(batch: int = 1, tokens: int = 12, **settings: Any) -> object:
        asked = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False} | settings
        prompt = tiny_prompt(batch, tokens)
        return model.generate(prompt, **({"attention_mask": torch.ones_like(prompt)} | asked))

    def padded() -> object:
        mask = torch.ones(3, 9, dtype=torch.long)
        mask[0, :4] = 0
        return generate(3, 9, attention_mask=mask)

    def interrupted() -> object:
        def interrupt() -> None:
            raise Interruption

        with pytest.raises(Interruption):
            generate(tokens=7, stopping_criteria=[AfterStep(4, interrupt)])
        return None

    def streamed() -> object:
        return generate(tokens=6, streamer=OnToken(lambda place: None))

    return {
        "greedy": generate,
        "sampled": lambda: generate(2, 8, do_sample=True, top_k=1, temperature=0.7),
        "padded": padded,
        "interrupted": interrupted,
        "streamed": streamed,
        "no cache": lambda: generate(tokens=5, use_cache=False),
    }


class Records:
    """The records of the last generation of each thread."""

    def __init__(self) -> None:
        self._by_thread: dict[int, list[GenerationRecord]] = {}

    def keep(self, observed: Observed) -> None:
        self._by_thread.setdefault(threading.get_ident(), []).append(observed.record)

    def of(self, job: Job) -> list[GenerationRecord]:
        """Do the job in this thread; its records."""
        job()
        return self._by_thread.pop(threading.get_ident())


def difference(left: Any, right: Any, place: str = "record") -> str | None:
    """Where two records differ, but for times; ``None`` when they do not."""
    if dataclasses.is_dataclass(left) and type(left) is type(right):
        for each in dataclasses.fields(left):
            if "time" in each.name:
                continue
            found = difference(
                getattr(left, each.name), getattr(right, each.name), f"{place}.{each.name}"
            )
            if found is not None:
                return found
        return None
    if isinstance(left, list):
        pairs = zip(left, right, strict=False)
        parts = (difference(a, b, f"{place}[{at}]") for at, (a, b) in enumerate(pairs))
        found = next((part for part in parts if part is not None), None)
        return found or (None if len(left) == len(right) else f"{place}: {len(right)} of them")
    if isinstance(left, np.ndarray):
        same = np.array_equal(left, right, equal_nan=left.dtype.kind == "f")
        return None if same else f"{place}: {left} and {right}"
    return None if left == right else f"{place}: {left} and {right}"


class Soak:
    """Jobs that threads take in turn, each done with nothing else going on to begin with.

    The threads stay the same: linear algebra keeps scratch memory for every thread there has been.
    """

    def __init__(self, jobs: dict[str, Job], records: Records, threads: ThreadPoolExecutor) -> None:
        self._jobs = jobs
        self._threads = threads
        self._records = records
        self._expected = {name: records.of(job) for name, job in jobs.items()}
        self._lock = threading.Lock()
        self.done: Counter[str] = Counter()
        self.wrong: set[str] = set()

    def run(self, seconds: float) -> None:
        """Every job at least once, and on until the time is up."""
        names = itertools.cycle(self._jobs)
        deadline = time.monotonic() + seconds
        begun = 0

        def work() -> None:
            nonlocal begun
            while True:
                with self._lock:
                    if begun >= len(self._jobs) and time.monotonic() > deadline:
                        return
                    begun += 1
                    name = next(names)
                self._do(name)

        for thread in [self._threads.submit(work) for _ in range(THREADS)]:
            thread.result()

    def _do(self, name: str) -> None:
        found = difference(self._expected[name], self._records.of(self._jobs[name]))
        with self._lock:
            self.done[name] += 1
            if found is not None:
                self.wrong.add(f"{name}: {found}")


def live_objects() -> Counter[str]:
    """How many objects there are of each type that generations make; metrics have few for all."""
    gc.collect()
    types = (type(each) for each in gc.get_objects())
    names = (f"{each.__module__}.{each.__qualname__}" for each in types)
    return Counter(name for name in names if name.startswith(_GENERATION))


def resident_bytes() -> int:
    """Resident memory, once what is free has been given back."""
    CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main(seconds: float, results: Path) -> None:
    """Two halves of ``seconds``, and what the second adds to the first."""
    records = Records()
    # Spans are made, and kept by nobody.
    tracer_provider = TracerProvider(shutdown_on_exit=False)
    models = {"smollm2": load().model, "gemma2": tiny_model("gemma2")}
    each = {f"{name}, {job}": do for name, of in models.items() for job, do in jobs(of).items()}
    with (
        in_memory_telemetry() as telemetry,
        instrumented(
            telemetry,
            tracer_provider=tracer_provider,
            logger_provider=None,
            on_generation=records.keep,
        ),
        ThreadPoolExecutor(THREADS) as threads,
    ):
        soak = Soak(each, records, threads)
        soak.run(seconds / 2)
        objects, memory = live_objects(), resident_bytes()
        soak.run(seconds / 2)
        found = {
            "done": soak.done,
            "wrong": sorted(soak.wrong),
            "failures": counted(telemetry, "corevital.capture.failure.count"),
            "more objects": live_objects() - objects,
            "more resident bytes": resident_bytes() - memory,
        }
    results.write_text(json.dumps(found))


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2]))
