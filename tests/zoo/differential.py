"""One architecture decoded in many modes, without CoreVital and with it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers.utils import logging as transformers_logging

from corevital import GenerationRecord, Observed
from tests.instrumentation import counted, instrumented
from tests.models import tiny_model
from tests.providers import Telemetry, in_memory_telemetry
from tests.zoo.architectures import Architecture
from tests.zoo.comparison import Outcome, outcome
from tests.zoo.modes import Subject
from tests.zoo.sizes import VOCABULARY


@dataclass(frozen=True, slots=True)
class Observation:
    """One mode under CoreVital: what came of it, and what was recorded of it.

    ``records`` has the records of all calls of ``generate``, ``failures`` counts CoreVital's own.
    """

    outcome: Outcome
    records: list[GenerationRecord]
    failures: float


def subjects(architecture: Architecture) -> tuple[Subject, Subject]:
    """Two models with the same weights, each with an assistant.

    Skips the test where a release that the zoo was not made for has no such model.
    """
    model = architecture.build_or_skip()
    if model.config.is_encoder_decoder:
        assistant = copy.deepcopy(model)
    else:
        assistant = tiny_model("llama", vocab_size=VOCABULARY)
    subject = Subject(architecture, model, assistant)
    return subject, copy.deepcopy(subject)


def plain(subject: Subject, modes: Iterable[str]) -> dict[str, Outcome]:
    """What comes of each mode by itself."""
    with quiet():
        return {mode: outcome(mode, subject) for mode in modes}


def observed(subject: Subject, modes: Iterable[str]) -> dict[str, Observation]:
    """What comes of each mode under CoreVital."""
    records: list[GenerationRecord] = []

    def keep(each: Observed) -> None:
        records.append(each.record)

    observations: dict[str, Observation] = {}
    with quiet(), in_memory_telemetry() as telemetry, instrumented(telemetry, on_generation=keep):
        for mode in modes:
            before = failures(telemetry)
            result = outcome(mode, subject)
            observations[mode] = Observation(result, [*records], failures(telemetry) - before)
            records.clear()
    return observations


def failures(telemetry: Telemetry) -> float:
    """How many failures CoreVital has counted."""
    return counted(telemetry, "corevital.capture.failure.count")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep back what transformers itself warns of: odd modes, random weights."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
