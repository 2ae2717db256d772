"""Generation explorer: find a generation, and open its trace."""

from __future__ import annotations

from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai

from corevital import semconv
from corevital.assess import early_warning, signals
from dashboards import parts
from dashboards.names import label, span
from dashboards.parts import ANYTHING, Dashboard
from dashboards.queries import logs, traces

FLAGS: Final = (
    semconv.NAN_OR_INF,
    semconv.REPETITION_DETECTED,
    semconv.REPETITION_LOOP,
    semconv.MID_LAYER_ANOMALY,
    semconv.ATTENTION_COLLAPSE,
)
COLUMNS: Final = (
    gen_ai.GEN_AI_REQUEST_MODEL,
    semconv.RISK_SCORE,
    semconv.RISK_LEVEL,
    semconv.NARRATIVE,
)


def generation_explorer() -> Dashboard:
    """Tempo, by TraceQL; Prometheus only for the names of services and models; Loki for steps."""
    return (
        parts.new(
            "CoreVital: Generation explorer",
            # The alerts link to it.
            "corevital-explorer",
            "Search for generations by risk, flag, signal, blamed layer or prompt. A click on a "
            "trace shows its span with every token.",
        )
        .with_variable(parts.source("tempo"))
        .with_variable(parts.source("prometheus"))
        .with_variable(parts.source("loki"))
        .with_variable(parts.services())
        .with_variable(parts.models())
        .with_variable(
            parts.choice(
                "risk",
                "Risk from",
                "Lowest risk score; 0.3 is moderate, 0.6 high, 0.85 critical.",
                *("0.6", "0.0", "0.3", "0.85"),
            )
        )
        .with_variable(parts.choice("flag", "Flag", "A health flag.", *FLAGS))
        .with_variable(
            parts.choice(
                "signal", "Signal", "A compound signal.", *sorted(signals.SEVERITY), ANYTHING
            )
        )
        .with_variable(
            parts.choice(
                "warning",
                "Early warning",
                "An early warning.",
                *sorted(early_warning.SEVERITY),
                ANYTHING,
            )
        )
        .with_variable(parts.text("layer", "Layer", "A blamed layer, zero-based.", "0"))
        .with_variable(
            parts.text(
                "prompt",
                "Prompt hash",
                "All runs of one prompt: the value of `corevital.prompt.hash`, or .* for any.",
                ANYTHING,
            )
        )
        .with_section(_riskiest())
        .with_section(_findings())
        .with_section(_prompt_and_errors())
        .with_section(_steps())
    )


def _riskiest() -> parts.Row:
    return parts.Row("Risk").with_panel(
        parts.found_traces(
            "Riskiest generations",
            "Generations with a risk score from the variable *Risk from* on, the highest first. "
            "The colours are the risk levels. The narrative says what was found.",
            traces(f"{span(semconv.RISK_SCORE)} >= $risk", select=COLUMNS),
            semconv.RISK_SCORE,
        )
    )


def _findings() -> parts.Row:
    return (
        parts.Row("By what was found")
        .with_panel(
            parts.found_traces(
                "With the flag",
                "Generations with the health flag of the variable *Flag*.",
                traces("span.$flag = true", select=COLUMNS),
                semconv.RISK_SCORE,
                width=12,
            )
        )
        .with_panel(
            parts.found_traces(
                "With the signal",
                "Generations with the compound signal of the variable *Signal*.",
                traces(
                    f'{span(semconv.SIGNAL_NAMES)} =~ "$signal"',
                    select=(*COLUMNS, semconv.SIGNAL_NAMES),
                ),
                semconv.RISK_SCORE,
                width=12,
            )
        )
        .with_panel(
            parts.found_traces(
                "With the early warning",
                "Generations that ended with the warning of the variable *Early warning*.",
                traces(
                    f'{span(semconv.EARLY_WARNING_SIGNALS)} =~ "$warning"',
                    select=(*COLUMNS, semconv.EARLY_WARNING_SCORE, semconv.EARLY_WARNING_SIGNALS),
                ),
                semconv.RISK_SCORE,
                width=12,
            )
        )
        .with_panel(
            parts.found_traces(
                "That blame the layer",
                "Generations that blame the layer of the variable *Layer*. A span names the ten "
                "worst layers; the dashboard *Layer blame* counts all.",
                traces(
                    f"{span(semconv.BLAME_LAYERS)} = $layer",
                    select=(*COLUMNS, semconv.BLAME_LAYERS, semconv.BLAME_REASONS),
                ),
                semconv.RISK_SCORE,
                width=12,
            )
        )
    )


def _prompt_and_errors() -> parts.Row:
    return (
        parts.Row("By prompt, and those that failed")
        .with_panel(
            parts.found_traces(
                "Runs of the prompt",
                "Generations whose prompt has the hash of the variable *Prompt hash*: how "
                "differently does one prompt end?",
                traces(
                    f'{span(semconv.PROMPT_HASH)} =~ "$prompt"',
                    select=(*COLUMNS, semconv.PROMPT_HASH, semconv.ENTROPY_MEAN),
                ),
                semconv.RISK_SCORE,
                width=12,
            )
        )
        .with_panel(
            parts.found_traces(
                "Calls that raised",
                "Calls of `generate` that ended with an exception; what was observed until then is "
                "on the span.",
                traces("status = error", select=(gen_ai.GEN_AI_REQUEST_MODEL, "error.type")),
                "error.type",
                width=12,
            )
        )
    )


def _steps() -> parts.Row:
    entropy = label(semconv.STEP_ENTROPY)
    return parts.Row("Steps, as log events").with_panel(
        parts.records(
            "Uncertain steps",
            "Tokens with an entropy above 4 bits, of services that send step events as logs "
            "(`COREVITAL_STEP_EVENTS=log` or `both`). The details of a record have its token and "
            "its trace.",
            logs(semconv.EVENT_STEP.name, f"{entropy} > 4"),
        )
    )
