"""Model comparison: two models side by side, over the same services and time."""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as standard

from corevital import semconv
from corevital.assess.risk import USUAL_LEVELS
from dashboards import parts
from dashboards.names import label
from dashboards.parts import Dashboard
from dashboards.queries import (
    MODEL,
    RANGE,
    above,
    heat,
    increase,
    mean,
    of_model,
    quantile,
    rate,
    share,
    total,
)

MODELS: Final = ("model_a", "model_b")
BOTH: Final = f'job=~"$service", {MODEL}=~"$model_a|$model_b"'
NAMED: Final = f"{{{{{MODEL}}}}}"
FLAG: Final = label(semconv.FLAG_NAME)


def model_comparison() -> Dashboard:
    """Prometheus."""
    return (
        parts.new(
            "CoreVital: Model comparison",
            "corevital-model-comparison",
            "Risk, uncertainty, flags and speed of two models. Compare them on the same requests: "
            "other prompts have other entropies.",
        )
        .with_variable(parts.source("prometheus"))
        .with_variable(parts.services())
        .with_variable(parts.model("model_a", "Model A"))
        .with_variable(parts.model("model_b", "Model B"))
        .with_section(_summary())
        .with_section(_side_by_side())
        .with_section(_over_time())
    )


def _summary() -> parts.Row:
    def every(name: str) -> str:
        return total(increase(name, RANGE, BOTH), MODEL)

    assessed = total(increase(semconv.METRIC_RISK, RANGE, BOTH, "_count"), MODEL)
    duration = standard.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN
    columns = {
        "Generations": (every(semconv.METRIC_GENERATIONS), "short"),
        "Risk, mean": (mean(semconv.METRIC_RISK, MODEL, over=RANGE, where=BOTH), "short"),
        "High or critical": (
            above(USUAL_LEVELS.high, semconv.METRIC_RISK, MODEL, over=RANGE, where=BOTH),
            "percentunit",
        ),
        "Flags a generation": (share(every(semconv.METRIC_FLAGS), assessed), "short"),
        "Entropy, bits": (mean(semconv.METRIC_ENTROPY, MODEL, over=RANGE, where=BOTH), "short"),
        "Surprisal, bits": (mean(semconv.METRIC_SURPRISAL, MODEL, over=RANGE, where=BOTH), "short"),
        "Margin": (mean(semconv.METRIC_MARGIN, MODEL, over=RANGE, where=BOTH), "short"),
        "Time a token": (mean(duration, MODEL, over=RANGE, where=BOTH), "s"),
    }
    return parts.Row("In this time range").with_panel(
        parts.rows(
            "Both models",
            "Means over the time range. *Flags a generation* counts each flag, so it can exceed 1. "
            "Entropies of models with different tokenizers are not comparable: a longer token is "
            "harder to guess.",
            columns,
        )
    )


def _side_by_side() -> parts.Row:
    histograms = (
        ("Risk scores", "How many generations had which risk score.", semconv.METRIC_RISK),
        ("Entropy", "Bits, of the next token, each generation's mean.", semconv.METRIC_ENTROPY),
        (
            "Surprisal",
            "Bits, of the chosen token, each generation's mean.",
            semconv.METRIC_SURPRISAL,
        ),
    )
    found = parts.Row("Side by side: A on the left, B on the right")
    for title, description, name in histograms:
        for variable in MODELS:
            panel = parts.heat_map(
                f"{title}: ${variable}", description, heat(name, of_model(variable))
            )
            found = found.with_panel(panel)
    for variable in MODELS:
        where = of_model(variable)
        assessed = total(rate(semconv.METRIC_RISK, where=where, suffix="_count"))
        flags = total(rate(semconv.METRIC_FLAGS, where=where), FLAG)
        found = found.with_panel(
            parts.lines(
                f"Health flags: ${variable}",
                "Share of the assessed generations that have each flag.",
                {f"{{{{{FLAG}}}}}": f"{flags} / on () group_left () ({assessed} > 0)"},
                "percentunit",
            )
        )
    return found


def _over_time() -> parts.Row:
    return (
        parts.Row("Together")
        .with_panel(
            parts.lines(
                "Risk, 95th percentile",
                "Dashed: from where a risk is moderate (0.3), high (0.6) and critical (0.85).",
                {NAMED: quantile(0.95, semconv.METRIC_RISK, MODEL, where=BOTH)},
                thresholds=parts.risk_levels(),
                width=8,
            ).max(1)
        )
        .with_panel(
            parts.lines(
                "Mean entropy",
                "Bits, mean of the generations' means.",
                {NAMED: mean(semconv.METRIC_ENTROPY, MODEL, where=BOTH)},
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Time for each further token, 95th percentile",
                "On the same hardware and batch size, the price of the model.",
                {
                    NAMED: quantile(
                        0.95, standard.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN, MODEL, where=BOTH
                    )
                },
                "s",
                width=8,
            )
        )
    )
