"""Writes ``docs/telemetry.md`` from the declarations in ``corevital.semconv``.

python docs/generate_telemetry.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from corevital import semconv
from corevital.semconv import Attribute, Metric, Place

TARGET = Path(__file__).with_name("telemetry.md")

HEAD = """# Telemetry

What CoreVital emits. This page is generated from `src/corevital/semconv.py` by
`python docs/generate_telemetry.py`; a test fails when they differ.

Each call of `generate` is one span, `{operation} {model}`, with the GenAI attributes of the
OpenTelemetry semantic conventions (`gen_ai.operation.name`, `gen_ai.provider.name`,
`gen_ai.request.*`, `gen_ai.response.finish_reasons`, `gen_ai.usage.*`), which
`opentelemetry-util-genai` writes. A call that generates several sequences has a child span
`sequence {model}` for each. What could not be observed has no attribute.

The result of the assessment is also emitted as the standard log event `gen_ai.evaluation.result`,
with the name `corevital.risk`.
"""

PLACES = {
    Place.SPAN: "Span attributes",
    Place.STEP: "Event `corevital.step`",
    Place.LAYERS: "Event `corevital.layers`",
    Place.PROMPT: "Event `corevital.prompt`",
    Place.METRIC: "Metric attributes",
}

TAIL = """
Of the standard GenAI metrics, `gen_ai.client.operation.duration` and `gen_ai.client.token.usage`
come from `opentelemetry-util-genai`; `gen_ai.server.request.duration`,
`gen_ai.server.time_to_first_token` and `gen_ai.server.time_per_output_token` come from CoreVital,
with the boundaries that the conventions advise. All metrics carry `gen_ai.operation.name`,
`gen_ai.provider.name` and `gen_ai.request.model`.
"""


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for place, title in PLACES.items():
        rows = [each for each in semconv.ATTRIBUTES if place in each.places]
        parts.append(f"\n## {title}\n\n{_brief(place)}{_attribute_table(rows)}")
    parts.append(f"\n## Metrics\n\n{_metric_table(semconv.METRICS)}{TAIL}")
    return "".join(parts)


def _brief(place: Place) -> str:
    briefs = {event.name: event.brief for event in semconv.EVENTS}
    return f"{briefs[place.value]}\n\n" if place.value in briefs else ""


def _attribute_table(attributes: list[Attribute]) -> str:
    lines = ["| Attribute | Type | Unit | Meaning |", "|---|---|---|---|"]
    lines += [
        f"| `{each.name}` | {each.type} | {_code(each.unit)} | {each.brief} |"
        for each in attributes
    ]
    return "\n".join(lines) + "\n"


def _metric_table(metrics: tuple[Metric, ...]) -> str:
    lines = ["| Metric | Instrument | Unit | Meaning | Boundaries |", "|---|---|---|---|---|"]
    lines += [
        f"| `{each.name}` | {each.instrument} | {_code(each.unit)} | {each.brief} | "
        f"{', '.join(f'{bound:g}' for bound in each.buckets)} |"
        for each in metrics
    ]
    return "\n".join(lines) + "\n"


def _code(unit: str) -> str:
    return f"`{unit}`" if unit else ""


def main() -> int:
    """Write the page, or with ``--check`` only say whether it is up to date."""
    if "--check" in sys.argv:
        return int(TARGET.read_text() != page())
    TARGET.write_text(page())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
