"""Metrics of every generation; their exemplars link to its span."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Final
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from opentelemetry.context import Context
from opentelemetry.metrics import (
    CallbackOptions,
    Counter,
    Histogram,
    Instrument,
    Meter,
    MeterProvider,
    Observation,
    get_meter,
)
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.schemas import Schemas

from corevital import semconv
from corevital.assess.assessment import Assessment
from corevital.assess.observed import mean, observed
from corevital.record import GenerationRecord
from corevital.version import __version__

Attributes = dict[str, str | int | float | bool]
GaugeReader = Callable[[CallbackOptions], Iterable[Observation]]
"""Tells what a gauge shows now."""

# Boundaries advised by the semantic conventions for generative AI metrics.
_REQUEST_SECONDS: Final = (
    0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92
)  # fmt: skip
_FIRST_TOKEN_SECONDS: Final = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0
)  # fmt: skip
_OUTPUT_TOKEN_SECONDS: Final = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5
)  # fmt: skip


_FLAGS: Final = ("nan_or_inf", "repetition_loop", "mid_layer_anomaly", "attention_collapse")
# A loop of any period; no flag of the published heuristics.
_REPETITION: Final = "repetition"


class _GlobalProvider:
    """Stands for the global meter provider, which may be set later."""


_GLOBAL: Final = _GlobalProvider()
# A provider keeps the first instrument of a name, and its callback, for good.
_readers: WeakKeyDictionary[object, Mapping[str, GaugeReader]] = WeakKeyDictionary()


def _read(
    provider: weakref.ref[object], name: str, options: CallbackOptions
) -> Iterable[Observation]:
    owner = provider()
    reader = None if owner is None else _readers.get(owner, {}).get(name)
    return () if reader is None else reader(options)


class GenerationMetrics:
    """All instruments, created once."""

    def __init__(self, meter_provider: MeterProvider | None = None) -> None:
        meter = get_meter(
            "corevital", __version__, meter_provider, schema_url=Schemas.V1_37_0.value
        )
        self._provider = _GLOBAL if meter_provider is None else meter_provider
        read = partial(_read, weakref.ref(self._provider))
        instruments = {
            metric.name: _create(meter, metric, partial(read, metric.name))
            for metric in semconv.METRICS
        }
        self._histograms = {
            name: made for name, made in instruments.items() if isinstance(made, Histogram)
        }
        self._counters = {
            name: made for name, made in instruments.items() if isinstance(made, Counter)
        }
        self._request_duration = meter.create_histogram(
            gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION,
            "s",
            "Generative AI server request duration such as time-to-last byte or last output token.",
            explicit_bucket_boundaries_advisory=_REQUEST_SECONDS,
        )
        self._time_to_first_token = meter.create_histogram(
            gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
            "s",
            "Time to generate first token for successful responses.",
            explicit_bucket_boundaries_advisory=_FIRST_TOKEN_SECONDS,
        )
        self._time_per_output_token = meter.create_histogram(
            gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
            "s",
            "Time per output token generated after the first token for successful responses.",
            explicit_bucket_boundaries_advisory=_OUTPUT_TOKEN_SECONDS,
        )

    def read_gauges(self, readers: Mapping[str, GaugeReader]) -> None:
        """Let gauges show what ``readers``, by their names, tell from now on."""
        _readers[self._provider] = readers

    def record_request(
        self,
        seconds: float,
        token_seconds: NDArray[np.float64],
        attributes: Attributes,
        context: Context,
        *,
        succeeded: bool,
    ) -> None:
        """Timing of one call of ``generate``; ``token_seconds`` ``[S]`` since its start."""
        self._request_duration.record(seconds, attributes, context)
        if not succeeded or not len(token_seconds):
            return
        self._time_to_first_token.record(float(token_seconds[0]), attributes, context)
        if len(token_seconds) > 1:
            per_token = (token_seconds[-1] - token_seconds[0]) / (len(token_seconds) - 1)
            self._time_per_output_token.record(float(per_token), attributes, context)

    def record_generation(
        self, record: GenerationRecord, attributes: Attributes, context: Context
    ) -> None:
        """What was observed of one sequence."""
        mode: Attributes = {semconv.CAPTURE_MODE: record.capture.mode.value}
        self._count(semconv.METRIC_GENERATIONS, 1, attributes | mode, context)
        if record.observed:
            self._count(semconv.METRIC_STEPS, record.steps, attributes, context)
        if record.logits is not None:
            for name, values in (
                (semconv.METRIC_ENTROPY, record.logits.entropy),
                (semconv.METRIC_SURPRISAL, record.logits.surprisal),
                (semconv.METRIC_MARGIN, record.logits.margin),
            ):
                # Of each token, recording would take longer than a step for a large batch.
                if (of_steps := observed(values)).size:
                    self._histograms[name].record(mean(of_steps), attributes, context)

    def record_assessment(
        self, assessment: Assessment, attributes: Attributes, context: Context
    ) -> None:
        """What the observations of one sequence mean."""
        risk = assessment.risk
        source: Attributes = {semconv.RISK_SOURCE: risk.source.value}
        self._histograms[semconv.METRIC_RISK].record(risk.score, attributes | source, context)
        flags = assessment.flags
        raised = [name for name in _FLAGS if getattr(flags, name)]
        if assessment.loops:
            raised.append(_REPETITION)
        for name in raised:
            flag: Attributes = {semconv.FLAG_NAME: name}
            self._count(semconv.METRIC_FLAGS, 1, attributes | flag, context)
        for signal in assessment.signals:
            signal_name: Attributes = {semconv.SIGNAL_NAME: signal.name}
            self._count(semconv.METRIC_SIGNALS, 1, attributes | signal_name, context)
        for warning in assessment.early_warning.signals:
            warning_name: Attributes = {semconv.SIGNAL_NAME: warning}
            self._count(semconv.METRIC_EARLY_WARNINGS, 1, attributes | warning_name, context)
        for blamed in assessment.blame:
            layer: Attributes = {semconv.LAYER: blamed.layer}
            self._count(semconv.METRIC_BLAMED_LAYERS, 1, attributes | layer, context)

    def record_intervention(self, reason: str, attributes: Attributes, context: Context) -> None:
        """A sequence that was stopped early."""
        why: Attributes = {semconv.INTERVENTION_REASON: reason}
        self._count(semconv.METRIC_INTERVENTIONS, 1, attributes | why, context)

    def record_failure(self, what: str, attributes: Attributes, context: Context | None) -> None:
        """A failure of CoreVital itself."""
        signal: Attributes = {semconv.SIGNAL_NAME: what}
        self._count(semconv.METRIC_FAILURES, 1, attributes | signal, context)

    def record_cost(self, seconds: float, attributes: Attributes, context: Context) -> None:
        """Time that CoreVital took in one call of ``generate``."""
        self._histograms[semconv.METRIC_COST].record(seconds, attributes, context)

    def _count(
        self, name: str, amount: int, attributes: Attributes, context: Context | None
    ) -> None:
        self._counters[name].add(amount, attributes, context)


def _create(meter: Meter, metric: semconv.Metric, read: GaugeReader) -> Instrument:
    if metric.instrument == "histogram":
        return meter.create_histogram(
            metric.name,
            metric.unit,
            metric.brief,
            explicit_bucket_boundaries_advisory=metric.buckets,
        )
    if metric.instrument == "gauge":
        return meter.create_observable_gauge(metric.name, [read], metric.unit, metric.brief)
    if metric.instrument == "updowncounter":
        return meter.create_observable_up_down_counter(
            metric.name, [read], metric.unit, metric.brief
        )
    return meter.create_counter(metric.name, metric.unit, metric.brief)
