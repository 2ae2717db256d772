"""How busy the managers of continuous batching are, as gauges."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes

from corevital import semconv
from corevital.capture.continuous_api import Blocks
from corevital.telemetry.delivery import PROVIDER
from corevital.telemetry.metrics import Attributes, GaugeReader


@dataclass(frozen=True, slots=True)
class Load:
    """One manager: its requests, its key-value cache, and the tokens of its last batch.

    ``tokens`` is 0 while nothing is active; ``capacity`` is the most that a batch can have.
    """

    model: str
    active: int
    waiting: int
    blocks: Blocks
    tokens: int
    capacity: int


def observed_loads(loads: Callable[[], Iterable[Load]]) -> dict[str, GaugeReader]:
    """A reader for each gauge, by its name; managers of one model are added up."""

    def requests(options: CallbackOptions) -> Iterator[Observation]:
        for model, group in _by_model(loads()).items():
            for state, of in (("active", _active), ("waiting", _waiting)):
                attributes = _attributes(model) | {semconv.REQUEST_STATE: state}
                yield Observation(sum(map(of, group)), attributes)

    def blocks(options: CallbackOptions) -> Iterator[Observation]:
        for model, group in _by_model(loads()).items():
            for state in ("used", "free"):
                attributes = _attributes(model) | {semconv.KV_CACHE_STATE: state}
                yield Observation(sum(getattr(load.blocks, state) for load in group), attributes)

    def fill(options: CallbackOptions) -> Iterator[Observation]:
        for model, group in _by_model(loads()).items():
            capacity = sum(load.capacity for load in group)
            tokens = sum(load.tokens for load in group)
            yield Observation(tokens / max(capacity, 1), _attributes(model))

    return {
        semconv.METRIC_BATCHED_REQUESTS: requests,
        semconv.METRIC_KV_CACHE_BLOCKS: blocks,
        semconv.METRIC_BATCH_FILL: fill,
    }


def _active(load: Load) -> int:
    return load.active


def _waiting(load: Load) -> int:
    return load.waiting


def _by_model(loads: Iterable[Load]) -> dict[str, list[Load]]:
    groups: dict[str, list[Load]] = {}
    for load in loads:
        groups.setdefault(load.model, []).append(load)
    return groups


def _attributes(model: str) -> Attributes:
    return {
        gen_ai_attributes.GEN_AI_PROVIDER_NAME: PROVIDER,
        gen_ai_attributes.GEN_AI_REQUEST_MODEL: model,
    }
