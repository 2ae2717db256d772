"""Layer blame: which layers misbehave, how often, and since when."""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

from corevital import semconv
from dashboards import parts
from dashboards.names import label, metric, span
from dashboards.parts import Dashboard
from dashboards.queries import CHOSEN, MODEL, RANGE, increase, total, traces

LAYER: Final = label(semconv.LAYER)
BLAMED: Final = semconv.METRIC_BLAMED_LAYERS
NAMED: Final = f"{{{{{LAYER}}}}}"


def layer_blame() -> Dashboard:
    """Prometheus, and Tempo for the generations behind a layer."""
    return (
        parts.new(
            "CoreVital: Layer blame",
            "corevital-layer-blame",
            "Which layers behave unusually. Some layers of a model always do: look for layers that "
            "are not usually blamed. Only NaN or Inf is a fault by itself.",
        )
        .with_variable(parts.source("prometheus"))
        .with_variable(parts.source("tempo"))
        .with_variable(parts.services())
        .with_variable(parts.models())
        .with_variable(
            parts.text("layer", "Layer", "Whose generations are listed; zero-based.", "0")
        )
        .with_section(_which())
        .with_section(_since_when())
        .with_section(_why())
    )


def _of_assessed(by: tuple[str, ...], over: str) -> str:
    """Blamed generations as a share of the assessed ones of the same model."""
    blamed = total(increase(BLAMED, over), *by, MODEL)
    assessed = total(increase(semconv.METRIC_RISK, over, suffix="_count"), MODEL)
    return f"{blamed} / on ({MODEL}) group_left () ({assessed} > 0)"


def _which() -> parts.Row:
    return (
        parts.Row("Which layers, and how often")
        .with_panel(
            parts.bars(
                "Share of generations that blame each layer",
                "Over the time range. A layer near 100 % is a trait of the model; one that is "
                "blamed now and then tells the generations apart.",
                f"topk(20, {_of_assessed((LAYER,), RANGE)})",
                f"layer {NAMED} of {{{{{MODEL}}}}}",
            )
        )
        .with_panel(
            parts.heat_map(
                "Blamed layers over time",
                "Generations that blame each layer. A row that begins to fill is a layer that "
                "began to misbehave: what was rolled out then?",
                total(increase(BLAMED), LAYER),
                legend=NAMED,
            )
        )
    )


def _since_when() -> parts.Row:
    first = f"min_over_time(timestamp({metric(BLAMED)}{{{CHOSEN}}} > 0)[{RANGE}:$__interval])"
    columns = {
        "Generations": (total(increase(BLAMED, RANGE), MODEL, LAYER), "short"),
        "Share": (_of_assessed((LAYER,), RANGE), "percentunit"),
        "Since": (f"min by ({MODEL}, {LAYER}) ({first}) * 1000", "dateTimeAsIso"),
    }
    return parts.Row("Since when").with_panel(
        parts.rows(
            "Every blamed layer",
            "*Since* is when the layer was first blamed within the time range, or the start of it; "
            "choose a longer range to look further back. A process counts anew when it starts.",
            columns,
        )
    )


def _why() -> parts.Row:
    return parts.Row("Why").with_panel(
        parts.found_traces(
            "Generations that blame the layer",
            "Those that have the layer of the variable *Layer* among their ten worst, with the "
            "reasons of the two worst.",
            traces(
                f"{span(semconv.BLAME_LAYERS)} = $layer",
                select=(
                    gen_ai.GEN_AI_REQUEST_MODEL,
                    semconv.RISK_SCORE,
                    semconv.BLAME_LAYERS,
                    semconv.BLAME_REASONS,
                ),
            ),
            semconv.RISK_SCORE,
        )
    )
