"""Fleet health: how all models of all services are doing."""

from __future__ import annotations

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics as standard
from opentelemetry.semconv.attributes import error_attributes

from corevital import semconv
from corevital.assess.risk import USUAL_LEVELS
from dashboards import parts
from dashboards.names import label
from dashboards.parts import ORANGE, RED, YELLOW, Dashboard
from dashboards.queries import (
    CHOSEN,
    MODEL,
    RANGE,
    above,
    heat,
    increase,
    logs,
    mean,
    quantile,
    rate,
    share,
    total,
)

FLAG, SIGNAL = label(semconv.FLAG_NAME), label(semconv.SIGNAL_NAME)
NAN = f'{CHOSEN}, {FLAG}="nan_or_inf"'
# Some parts fail where the model is not known.
ANY_MODEL = 'job=~"$service"'
OUTPUT = f'{CHOSEN}, {label(gen_ai.GEN_AI_TOKEN_TYPE)}="output"'
ASSESSED = total(rate(semconv.METRIC_RISK, suffix="_count"))
LEVEL = label(gen_ai.GEN_AI_EVALUATION_SCORE_LABEL)


def fleet_health() -> Dashboard:
    """Prometheus, and Loki for the last row."""
    return (
        parts.new(
            "CoreVital: Fleet health",
            "corevital-fleet-health",
            "Risk, health flags, uncertainty, tokens and latency of all generations.",
        )
        .with_variable(parts.source("prometheus"))
        .with_variable(parts.source("loki"))
        .with_variable(parts.services())
        .with_variable(parts.models())
        .with_section(_overview())
        .with_section(_risk())
        .with_section(_findings())
        .with_section(_uncertainty())
        .with_section(_speed())
        .with_section(_corevital())
        .with_section(_evaluations())
    )


def _overview() -> parts.Row:
    at_least = USUAL_LEVELS.high
    return (
        parts.Row("In this time range")
        .with_panel(
            parts.number(
                "Generations",
                "Sequences that were generated; a batch counts each of its own.",
                total(increase(semconv.METRIC_GENERATIONS, RANGE)),
            ).decimals(0)
        )
        .with_panel(
            parts.number(
                "Risk, 95th percentile",
                "One generation in twenty has a higher risk score. Colours are the risk levels: "
                "moderate from 0.3, high from 0.6, critical from 0.85. A calibrated score is a "
                "probability of failure, an uncalibrated one a rank.",
                quantile(0.95, semconv.METRIC_RISK, over=RANGE),
                thresholds=parts.risk_levels(),
            ).decimals(2)
        )
        .with_panel(
            parts.number(
                "High or critical",
                f"Share of the assessed generations with a risk score above {at_least}.",
                above(at_least, semconv.METRIC_RISK, over=RANGE),
                "percentunit",
                parts.steps((0.05, YELLOW), (0.2, RED)),
            )
        )
        .with_panel(
            parts.number(
                "NaN or Inf",
                "Generations with NaN or Inf in a hidden state, an attention row or the logits. "
                "Always a fault: of the weights, the numeric type or a kernel.",
                f"{total(increase(semconv.METRIC_FLAGS, RANGE, NAN))} or vector(0)",
                thresholds=parts.steps((0.5, RED)),
            ).decimals(0)
        )
        .with_panel(
            parts.number(
                "Generated tokens a second",
                "Tokens of all answers, over all processes.",
                total(rate(standard.GEN_AI_CLIENT_TOKEN_USAGE, RANGE, OUTPUT, "_sum")),
            ).decimals(1)
        )
        .with_panel(
            parts.number(
                "Failures of CoreVital",
                "How often observing failed. The generations were not harmed, but a signal is "
                "missing; the last row says which.",
                f"{total(increase(semconv.METRIC_FAILURES, RANGE, ANY_MODEL))} or vector(0)",
                thresholds=parts.steps((0.5, ORANGE)),
            ).decimals(0)
        )
    )


def _risk() -> parts.Row:
    by_model = f"{{{{{MODEL}}}}}"
    return (
        parts.Row("Risk")
        .with_panel(
            parts.heat_map(
                "Risk scores",
                "How many generations had which risk score, over time. A second band that appears "
                "above the usual one is a kind of request that goes wrong.",
                heat(semconv.METRIC_RISK),
            )
        )
        .with_panel(
            parts.lines(
                "Risk by model, median and 95th percentile",
                "Dashed: from where a risk is moderate (0.3), high (0.6) and critical (0.85).",
                {
                    f"{by_model} p50": quantile(0.5, semconv.METRIC_RISK, MODEL),
                    f"{by_model} p95": quantile(0.95, semconv.METRIC_RISK, MODEL),
                },
                thresholds=parts.risk_levels(),
            ).max(1)
        )
    )


def _findings() -> parts.Row:
    def of_generations(name: str, by: str) -> str:
        return f"{total(rate(name), by)} / on () group_left () ({ASSESSED} > 0)"

    return (
        parts.Row("What was found, as a share of the assessed generations")
        .with_panel(
            parts.lines(
                "Health flags",
                "`nan_or_inf` is always a fault; `repetition` is a loop of any period in the text, "
                "`repetition_loop` one whose states stopped changing; the others compare layers "
                "and heads with what is usual.",
                {f"{{{{{FLAG}}}}}": of_generations(semconv.METRIC_FLAGS, FLAG)},
                "percentunit",
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Compound signals",
                "Patterns that no single statistic shows alone.",
                {f"{{{{{SIGNAL}}}}}": of_generations(semconv.METRIC_SIGNALS, SIGNAL)},
                "percentunit",
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Early warnings",
                "Raised at the end of the text, from its last five tokens: quick and noisy. Watch "
                "the rate, not the single one.",
                {f"{{{{{SIGNAL}}}}}": of_generations(semconv.METRIC_EARLY_WARNINGS, SIGNAL)},
                "percentunit",
                width=8,
            )
        )
    )


def _uncertainty() -> parts.Row:
    by_model = f"{{{{{MODEL}}}}}"
    heats = (
        (
            "Entropy of the next token",
            "Bits, each generation's mean. Near 0 there was one way to go on, 2 bits are as open "
            "as four equally likely tokens; at 10 bits a model knows nothing.",
            semconv.METRIC_ENTROPY,
        ),
        (
            "Surprisal of the chosen token",
            "Bits, each generation's mean. Far above the entropy, the sampler picked what the "
            "model did not want: look at the temperature.",
            semconv.METRIC_SURPRISAL,
        ),
    )
    found = parts.Row("Uncertainty")
    for title, description, name in heats:
        found = found.with_panel(parts.heat_map(title, description, heat(name)))
    return found.with_panel(
        parts.lines(
            "Mean entropy and surprisal by model",
            "Bits, means of generations. Compare a model with itself: a rise that stays is another "
            "kind of prompt, another sampling, or damage.",
            {
                f"{by_model} entropy": mean(semconv.METRIC_ENTROPY, MODEL),
                f"{by_model} surprisal": mean(semconv.METRIC_SURPRISAL, MODEL),
            },
        )
    ).with_panel(
        parts.lines(
            "Mean margin by model",
            "p1 - p2 of the two most likely tokens, in [0, 1]. Near 0 the choices are toss-ups.",
            {by_model: mean(semconv.METRIC_MARGIN, MODEL)},
        ).max(1)
    )


def _speed() -> parts.Row:
    by_model = f"{{{{{MODEL}}}}}"
    token_type, error = label(gen_ai.GEN_AI_TOKEN_TYPE), label(error_attributes.ERROR_TYPE)
    failed = f'{CHOSEN}, {error}!=""'
    duration = standard.GEN_AI_SERVER_REQUEST_DURATION
    return (
        parts.Row("Tokens and latency")
        .with_panel(
            parts.lines(
                "Tokens a second",
                "Of the prompts (`input`) and of the answers (`output`).",
                {
                    f"{{{{{token_type}}}}}": total(
                        rate(standard.GEN_AI_CLIENT_TOKEN_USAGE, suffix="_sum"), token_type
                    )
                },
            )
        )
        .with_panel(
            parts.lines(
                "Duration of a call",
                "From the call of `generate` to its last token, median and 95th percentile.",
                {
                    f"{by_model} p50": quantile(0.5, duration, MODEL),
                    f"{by_model} p95": quantile(0.95, duration, MODEL),
                },
                "s",
            )
        )
        .with_panel(
            parts.lines(
                "Time to the first token, 95th percentile",
                "The prompt, and what waits inside `generate`. It grows with the prompt.",
                {by_model: quantile(0.95, standard.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN, MODEL)},
                "s",
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Time for each further token, 95th percentile",
                "It grows with the batch and the context.",
                {by_model: quantile(0.95, standard.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN, MODEL)},
                "s",
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Calls that raised, a second",
                "By the exception that `generate` raised.",
                {
                    f"{{{{{error}}}}}": total(
                        rate(
                            standard.GEN_AI_SERVER_REQUEST_DURATION, where=failed, suffix="_count"
                        ),
                        error,
                    )
                },
                width=8,
            )
        )
    )


def _corevital() -> parts.Row:
    mode = label(semconv.CAPTURE_MODE)
    cost = share(
        total(rate(semconv.METRIC_COST, suffix="_sum")),
        total(rate(standard.GEN_AI_SERVER_REQUEST_DURATION, suffix="_sum")),
    )
    return (
        parts.Row("CoreVital itself")
        .with_panel(
            parts.lines(
                "Share of the time that observing took",
                "Time for reducing, assessing and sending, divided by the time of the calls; on an "
                "accelerator the host's time only.",
                {"all models": cost},
                "percentunit",
                parts.steps((0.1, YELLOW), (0.25, RED)),
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Generations a second by capture mode",
                "How much was observed: `full`, `summary`, `on_risk` or `off`.",
                {f"{{{{{mode}}}}}": total(rate(semconv.METRIC_GENERATIONS), mode)},
                width=8,
            )
        )
        .with_panel(
            parts.lines(
                "Failures of CoreVital",
                "By the signal that is missing, or the part that failed. Empty when there are "
                "none.",
                {
                    f"{{{{{SIGNAL}}}}}": total(
                        increase(semconv.METRIC_FAILURES, where=ANY_MODEL), SIGNAL
                    )
                },
                thresholds=parts.steps((1, ORANGE)),
                width=8,
            )
        )
    )


def _evaluations() -> parts.Row:
    event = "gen_ai.evaluation.result"
    counted = f"sum by ({LEVEL}) (count_over_time({logs(event)} [$__auto]))"
    return (
        parts.Row("Evaluations, as log events")
        .with_panel(
            parts.counted_records(
                "Evaluations by risk level",
                "The standard event `gen_ai.evaluation.result`, one for each assessed generation.",
                counted,
                f"{{{{{LEVEL}}}}}",
            )
        )
        .with_panel(
            parts.records(
                "High and critical",
                "The details of a record have the score, its explanation and the trace.",
                logs(event, f"{LEVEL}=~`high|critical`"),
                width=12,
            )
        )
    )
