"""Runs a real generation under CoreVital and hands out its records."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opentelemetry.sdk.trace import TracerProvider

from corevital import CoreVitalInstrumentor, GenerationRecord, Observed
from tests.models import GenerativeModel


@contextmanager
def observing(**settings: Any) -> Iterator[list[GenerationRecord]]:
    """Instrument inside the block; the list fills with the records of what is generated."""
    records: list[GenerationRecord] = []

    def keep(observed: Observed) -> None:
        records.append(observed.record)

    instrumentor = CoreVitalInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider(), on_generation=keep, **settings)
    try:
        yield records
    finally:
        instrumentor.uninstrument()


def observe(
    model: GenerativeModel, settings: dict[str, Any] | None = None, /, **arguments: Any
) -> tuple[Any, list[GenerationRecord]]:
    """What ``generate`` returned, and the record of each sequence."""
    with observing(**(settings or {})) as records:
        result = model.generate(**arguments)
    return result, records


def everything_equal(left: Any, right: Any) -> bool:
    """Whether two results of ``generate`` hold the same tensors."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, tuple | list):
        return len(left) == len(right) and all(
            everything_equal(a, b) for a, b in zip(left, right, strict=True)
        )
    if hasattr(left, "keys"):
        names = [name for name in left if name != "past_key_values"]
        return names == [name for name in right if name != "past_key_values"] and all(
            everything_equal(left[name], right[name]) for name in names
        )
    return type(left) is type(right)
