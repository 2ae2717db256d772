"""Runs of the short questions, each with what was observed of it and whether it failed.

Runs are kept in a file of JSON lines: a first line that says how they were made, then one line for
each run. What is in the file is not generated again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from opentelemetry.sdk.trace import TracerProvider
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.short_answers import Question, is_right
from corevital import CoreVitalInstrumentor, Observed
from corevital.assess import assess, profile_for
from corevital.calibration.fit_risk import LabelledRuns
from corevital.calibration.scoring import Observation
from scripts.smollm2 import GGUF_NAME, safetensors_folder

MAX_NEW_TOKENS: Final = 24


@dataclass(frozen=True, slots=True)
class LabelledRun:
    """One question with its reply, what a risk calibration sees of it, and two scores in [0, 1].

    ``heuristic`` is the published one, ``default`` the score that needs no calibration.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...]
    reply: str
    failed: bool
    features: dict[str, float]
    estimators: dict[str, float]
    heuristic: float
    default: float


def conditions(model: str | None) -> dict[str, Any]:
    """How runs are made; runs made in another way are others."""
    return {
        "model": model or f"{GGUF_NAME}, as float32",
        "max_new_tokens": MAX_NEW_TOKENS,
        "decoding": "greedy",
        "capture": "full",
        **{name: version(name) for name in ("corevital", "torch", "transformers")},
    }


def labelled_runs(
    asked: Sequence[Question],
    model: str | None,
    file: Path | None,
    listen: Callable[[], object] = lambda: None,
) -> list[LabelledRun]:
    """A run for each of the questions ``asked``, in their order.

    Args:
        asked: the questions.
        model: what transformers can load; ``None`` is SmolLM2-135M-Instruct, fetched once.
        file: where runs are kept; those that it lacks are added to it.
        listen: called for each run.

    Raises:
        ValueError: the runs in ``file`` were made in another way.
    """
    known = {} if file is None else _read(file, conditions(model))
    missing = [question for question in asked if question.prompt not in known]
    for _ in range(len(asked) - len(missing)):
        listen()
    if missing:
        _generate(missing, model, lambda run: _keep(run, known, file, listen))
    return [known[question.prompt] for question in asked]


def as_labels(runs: Sequence[LabelledRun]) -> LabelledRuns:
    """The runs as a risk calibration is fitted to them; each is of a prompt of its own."""
    return LabelledRuns(
        tuple(Observation(run.features, run.estimators) for run in runs),
        np.array([run.failed for run in runs]),
        np.arange(len(runs)),
    )


def _read(file: Path, made: dict[str, Any]) -> dict[str, LabelledRun]:
    """The runs in ``file`` by their prompts; a file that is not there gets its first line."""
    if not file.exists():
        file.write_text(json.dumps(made) + "\n", encoding="utf-8")
    first, *lines = file.read_text(encoding="utf-8").splitlines()
    if json.loads(first) != made:
        raise ValueError(f"{file} holds runs that were made otherwise: {first}")
    values = [json.loads(line) for line in lines]
    runs = [LabelledRun(**(value | {"answers": tuple(value["answers"])})) for value in values]
    return {run.prompt: run for run in runs}


def _keep(
    run: LabelledRun, known: dict[str, LabelledRun], file: Path | None, listen: Callable[[], object]
) -> None:
    known[run.prompt] = run
    if file is not None:
        with file.open("a", encoding="utf-8") as sink:
            sink.write(json.dumps(asdict(run)) + "\n")
    listen()


def _generate(
    asked: Sequence[Question], name: str | None, keep: Callable[[LabelledRun], None]
) -> None:
    folder = name or str(safetensors_folder())
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    found: list[Observed] = []
    instrumentor = CoreVitalInstrumentor()
    instrumentor.instrument(
        tracer_provider=TracerProvider(),
        on_generation=found.append,
        capture="full",
        step_events="none",
        calibration=(),
    )
    try:
        for question in asked:
            inputs = tokenizer.apply_chat_template(
                question.messages,
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            output = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            written = output[0, inputs["input_ids"].shape[1] :]
            reply = tokenizer.decode(written, skip_special_tokens=True)
            keep(_labelled(question, reply, found.pop()))
    finally:
        instrumentor.uninstrument()


def _labelled(question: Question, reply: str, observed: Observed) -> LabelledRun:
    record = observed.record
    observation = Observation.of(record)
    risk = assess(record, profile_for(record.model.family)).risk
    return LabelledRun(
        kind=question.kind,
        prompt=question.prompt,
        answers=question.answers,
        reply=reply,
        failed=not is_right(question, reply),
        features=dict(observation.features),
        estimators=dict(observation.estimators),
        heuristic=risk.heuristic,
        default=risk.score,
    )
