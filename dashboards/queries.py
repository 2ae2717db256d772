"""Queries as the panels ask them, over the services and models chosen in the variables."""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

from dashboards.names import label, metric, span

MODEL: Final = label(gen_ai.GEN_AI_REQUEST_MODEL)
RATE: Final = "$__rate_interval"
RANGE: Final = "$__range"
CHOSEN: Final = f'job=~"$service", {MODEL}=~"$model"'


def of_model(variable: str) -> str:
    """The series of the one model that a variable names."""
    return f'job=~"$service", {MODEL}="${variable}"'


def increase(name: str, over: str = RATE, where: str = CHOSEN, suffix: str = "") -> str:
    """How much a counter, or a histogram's ``suffix``, rose."""
    return f"increase({metric(name)}{suffix}{{{where}}}[{over}])"


def rate(name: str, over: str = RATE, where: str = CHOSEN, suffix: str = "") -> str:
    """How much it rose a second."""
    return f"rate({metric(name)}{suffix}{{{where}}}[{over}])"


def total(expression: str, *by: str) -> str:
    """The sum over everything but the labels ``by``."""
    grouping = f" by ({', '.join(by)})" if by else ""
    return f"sum{grouping} ({expression})"


def quantile(q: float, name: str, *by: str, over: str = RATE, where: str = CHOSEN) -> str:
    """A quantile of a histogram, by the labels ``by``."""
    buckets = total(rate(name, over, where, "_bucket"), "le", *by)
    return f"histogram_quantile({q}, {buckets})"


def mean(name: str, *by: str, over: str = RATE, where: str = CHOSEN) -> str:
    """The mean of a histogram's observations, by the labels ``by``."""
    return share(
        total(rate(name, over, where, "_sum"), *by),
        total(rate(name, over, where, "_count"), *by),
    )


def share(part: str, whole: str) -> str:
    """One expression divided by another, and nothing where there is nothing to divide by."""
    return f"{part} / ({whole} > 0)"


def heat(name: str, where: str = CHOSEN) -> str:
    """The buckets of a histogram, for a heatmap."""
    return total(increase(name, RATE, where, "_bucket"), "le")


def above(bound: float, name: str, *by: str, over: str = RATE, where: str = CHOSEN) -> str:
    """The share of a histogram's observations above ``bound``, which is one of its boundaries."""
    below = total(rate(name, over, f'{where}, le="{bound}"', "_bucket"), *by)
    every = total(rate(name, over, where, "_count"), *by)
    return f"1 - {share(below, every)}"


def traces(*conditions: str, select: tuple[str, ...] = ()) -> str:
    """TraceQL: the spans of the chosen services and models that meet every condition."""
    chosen = (
        'resource.service.name =~ "$service"',
        f'{span(gen_ai.GEN_AI_REQUEST_MODEL)} =~ "$model"',
        *conditions,
    )
    columns = f" | select({', '.join(map(span, select))})" if select else ""
    return f"{{ {' && '.join(chosen)} }}{columns}"


def logs(event: str, *conditions: str) -> str:
    """LogQL: the log records of an event, which is their body, that meet every condition."""
    stages = "".join(f" | {condition}" for condition in conditions)
    return f'{{service_name=~"$service"}} |= "{event}"{stages}'
