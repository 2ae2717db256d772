"""How CoreVital's names appear in Prometheus, Tempo and Loki.

Prometheus: as its OTLP receiver translates them by default (``UnderscoreEscapingWithSuffixes``):
dots become underscores, a unit that is a word is added, and ``_total`` to counters. The service is
the label ``job``. Loki: dots become underscores; the service is ``service_name``. TraceQL takes the
names as they are.
"""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from corevital import semconv

_SUFFIX: Final = {"s": "_seconds", "bit": "_bit"}
_STANDARD_UNITS: Final = {
    gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE: "{token}",
    gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION: "s",
    gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION: "s",
    gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN: "s",
    gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN: "s",
}
_DECLARED: Final = {metric.name: metric for metric in semconv.METRICS}


def metric(name: str) -> str:
    """The Prometheus name of a counter or histogram; a histogram's without ``_bucket`` and so on.

    Raises:
        KeyError: CoreVital emits no such metric.
    """
    declared = _DECLARED.get(name)
    unit = _STANDARD_UNITS[name] if declared is None else declared.unit
    total = "_total" if declared is not None and declared.instrument == "counter" else ""
    return label(name) + _SUFFIX.get(unit, "") + total


def label(name: str) -> str:
    """An attribute as a label in Prometheus or Loki."""
    return name.replace(".", "_")


def span(name: str) -> str:
    """A span attribute in TraceQL."""
    return f"span.{name}"
