"""Holds what is sent of one generation under 4 kB, whatever was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from opentelemetry._logs import LogRecord
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv.attributes import error_attributes
from opentelemetry.trace import Span

from corevital import semconv
from corevital.assess.wording import shortened
from corevital.telemetry.attributes import Value
from corevital.telemetry.wire_size import attribute_size, attributes_size, record_size, span_size

LIMIT: Final = 4096
"""Bytes, uncompressed, under which a generation's span and evaluation record stay together."""

CONTENT: Final = frozenset(
    {
        gen_ai.GEN_AI_INPUT_MESSAGES,
        gen_ai.GEN_AI_OUTPUT_MESSAGES,
        gen_ai.GEN_AI_SYSTEM_INSTRUCTIONS,
        gen_ai.GEN_AI_TOOL_DEFINITIONS,
    }
)
"""Attributes that are not counted: the messages that somebody asked for."""

_COUNTED: Final = ("gen_ai.", "corevital.", error_attributes.ERROR_TYPE)


@dataclass(frozen=True, slots=True)
class Cut:
    """What is left out of some attributes.

    Of lists, the first ``keep`` entries stay; of texts, as many characters; with 0, nothing.
    """

    names: tuple[str, ...]
    why: str
    keep: int = 0


_REASONS: Final = (
    semconv.CAPTURE_LOGITS,
    semconv.CAPTURE_HIDDEN,
    semconv.CAPTURE_ATTENTION,
    semconv.CAPTURE_PROMPT,
    semconv.CAPTURE_CROSS_ATTENTION,
    semconv.CAPTURE_ENCODER_HIDDEN,
    semconv.CAPTURE_ENCODER_ATTENTION,
)

CUTS: Final = (
    Cut(
        (
            semconv.UNCERTAINTY_ENTROPY_MEAN,
            semconv.UNCERTAINTY_ENTROPY_MAX,
            semconv.UNCERTAINTY_MARGIN_MEAN,
            semconv.UNCERTAINTY_NLL_PER_TOKEN,
        ),
        "The same numbers have another name as well",
    ),
    Cut((semconv.SIGNAL_EVIDENCE,), "The narrative has that of the two worst"),
    Cut(
        (semconv.BLAME_SEVERITIES, semconv.BLAME_REASONS),
        "The narrative has the two worst layers",
        keep=1,
    ),
    Cut(
        (semconv.BASELINE_ANOMALIES, semconv.CONSISTENCY_VIOLATIONS),
        "The first show the fault",
        keep=3,
    ),
    Cut((semconv.ENCODER_NON_FINITE_LAYERS,), "The first show the fault", keep=10),
    Cut(
        (
            semconv.PROMPT_SPARSE_WEIGHTS,
            semconv.PROMPT_TRANSFORMATION_MEAN,
            semconv.PROMPT_BASIN_MEAN,
        ),
        "Of the prompt, the surprisal says most",
    ),
    Cut(
        (
            semconv.ENCODER_L2_MEAN,
            semconv.ENCODER_MAX_ABS,
            semconv.ENCODER_ENTROPY_MEAN,
            semconv.CROSS_ATTENTION_ENTROPY_MEAN,
            semconv.ATTENTION_ENTROPY_MEAN,
        ),
        "Their usual values differ from model to model",
    ),
    Cut(
        (semconv.FINGERPRINT_VECTOR, semconv.FINGERPRINT_VERSION),
        "Compares generations, and says nothing of one",
    ),
    Cut((semconv.RISK_CONTRIBUTIONS, semconv.SIGNAL_SEVERITIES), "The names say what was found"),
    Cut(
        (semconv.BASELINE_ANOMALIES, semconv.CONSISTENCY_VIOLATIONS),
        "The first shows the fault",
        keep=1,
    ),
    Cut(
        (*_REASONS, semconv.CALIBRATION_REFUSED, semconv.INTERVENTION_UNAVAILABLE),
        "The beginning says most",
        keep=60,
    ),
    Cut((semconv.NARRATIVE,), "The verdict comes first", keep=300),
    Cut((semconv.BLAME_SEVERITIES, semconv.BLAME_REASONS), "The layers are named"),
    Cut(
        (
            semconv.MARGIN_MIN,
            semconv.TOP_K_MASS_MEAN,
            semconv.ENTROPY_MAX,
            semconv.SURPRISAL_MAX,
            semconv.PROMPT_SURPRISAL_MAX,
            semconv.CROSS_ATTENTION_NORMALIZED_MEAN,
            semconv.CROSS_ATTENTION_COLLAPSED_SHARE,
            semconv.ENCODER_COLLAPSED_SHARE,
            semconv.ATTENTION_COLLAPSED_SHARE,
        ),
        "The means say most",
    ),
    Cut((semconv.NARRATIVE, semconv.BASELINE_ANOMALIES), "What was found has a name besides"),
    Cut(_REASONS, "What is missing counts more than why", keep=len("unavailable...")),
    Cut((semconv.RISK_FACTORS,), "The first say most", keep=3),
    Cut(
        (
            semconv.RISK_FACTORS,
            semconv.CALIBRATION_REFUSED,
            semconv.INTERVENTION_UNAVAILABLE,
            semconv.CALIBRATION_BASELINE,
            semconv.CALIBRATION_RISK,
            semconv.UNCERTAINTY_NLL,
            semconv.UNCERTAINTY_RAUQ,
            semconv.TIME_TO_FIRST_TOKEN,
            semconv.TIME_PER_OUTPUT_TOKEN,
            semconv.ENCODER_NON_FINITE_LAYERS,
            semconv.CAPTURE_FULL_FROM,
            semconv.INTERVENTION_CONDITIONS,
            semconv.ATTENTION_COLLAPSE_SEVERITY,
            semconv.HIGH_ENTROPY_STEPS,
            semconv.MARGIN_MEAN,
            semconv.PROMPT_SURPRISAL_MEAN,
        ),
        "The rest is what alerts, sampling and dashboards ask for",
    ),
)
"""What is left out, the least informative first, until the rest fits."""


def within_limit(
    attributes: Mapping[str, Value], span: Span, evaluation: LogRecord | None = None
) -> dict[str, Value]:
    """``attributes`` without what does not fit on ``span`` beside its evaluation's log record.

    Counted is what the exporters send of both, with the standard attributes, but without messages,
    events, and attributes that the application itself has set. Where something is left out,
    `semconv.OMITTED` says of how many attributes.
    """
    room = LIMIT - 1 - _occupied(span, attributes)
    room -= record_size(evaluation) if evaluation is not None else 0
    needed = attributes_size(attributes)
    kept, cut = dict(attributes), set[str]()
    if needed > room:
        needed += attribute_size(semconv.OMITTED, len(attributes))
    for each in CUTS:
        if needed <= room:
            break
        for name in kept.keys() & set(each.names):
            needed -= attribute_size(name, kept[name])
            whole, shorter = kept.pop(name), None
            if each.keep:
                shorter = _first(whole, each.keep)
                kept[name] = shorter
                needed += attribute_size(name, shorter)
            if shorter != whole:
                cut.add(name)
    return kept | ({semconv.OMITTED: len(cut)} if cut else {})


def _occupied(span: Span, replaced: Mapping[str, Value]) -> int:
    """Bytes of what the span has and keeps; nothing is known of one that is not the SDK's."""
    if not isinstance(span, ReadableSpan):
        return 0
    counted = {
        name: value
        for name, value in (span.attributes or {}).items()
        if name.startswith(_COUNTED) and name not in CONTENT and name not in replaced
    }
    return span_size(span) + attributes_size(counted)


def _first(value: Value, keep: int) -> Value:
    if isinstance(value, str):
        return shortened(value, keep)
    return value[:keep] if isinstance(value, list) else value
