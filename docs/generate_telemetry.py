"""Writes ``docs/telemetry.md`` from the declarations in ``corevital.semconv``.

python docs/generate_telemetry.py [--check]
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import error_attributes

from corevital import semconv
from corevital.semconv import Attribute, Metric, Place, Type
from corevital.telemetry.request import MOST_MESSAGE_BYTES
from corevital.telemetry.size_limit import CUTS, LIMIT, Cut

TARGET: Final = Path(__file__).with_name("telemetry.md")


@dataclass(frozen=True, slots=True)
class Standard:
    """An attribute of OpenTelemetry's own conventions, and when CoreVital's telemetry has it."""

    name: str
    type: Type
    meaning: str


STANDARD_ATTRIBUTES: Final = (
    Standard(gen_ai.GEN_AI_OPERATION_NAME, Type.STRING, "`chat` or `text_completion`"),
    Standard(gen_ai.GEN_AI_PROVIDER_NAME, Type.STRING, "`huggingface`"),
    Standard(gen_ai.GEN_AI_REQUEST_MODEL, Type.STRING, "The model; of a local folder, its name"),
    Standard(gen_ai.GEN_AI_REQUEST_MAX_TOKENS, Type.INT, "`max_new_tokens`"),
    Standard(gen_ai.GEN_AI_REQUEST_TEMPERATURE, Type.DOUBLE, "When sampling"),
    Standard(gen_ai.GEN_AI_REQUEST_TOP_K, Type.INT, "When sampling"),
    Standard(gen_ai.GEN_AI_REQUEST_TOP_P, Type.DOUBLE, "When sampling"),
    Standard(gen_ai.GEN_AI_REQUEST_CHOICE_COUNT, Type.INT, "`num_return_sequences` above 1"),
    Standard(gen_ai.GEN_AI_REQUEST_STOP_SEQUENCES, Type.STRINGS, "`stop_strings`"),
    Standard(
        gen_ai.GEN_AI_REQUEST_STREAM,
        Type.BOOLEAN,
        "True with a `streamer`, and of a request that streams",
    ),
    Standard(gen_ai.GEN_AI_OUTPUT_TYPE, Type.STRING, "`text`; absent where it is audio"),
    Standard(
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS,
        Type.STRINGS,
        "`stop`, `length` or `error`, of every sequence; `cancelled` of a request that was",
    ),
    Standard(gen_ai.GEN_AI_RESPONSE_TIME_TO_FIRST_CHUNK, Type.DOUBLE, "Seconds, with a `streamer`"),
    Standard(
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS,
        Type.INT,
        "Tokens of the prompts, without padding; or positions, of what is no text",
    ),
    Standard(gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS, Type.INT, "Generated tokens"),
    Standard(error_attributes.ERROR_TYPE, Type.STRING, "The exception, of a call that raised"),
    Standard(gen_ai.GEN_AI_INPUT_MESSAGES, Type.STRING, "Only with content capture"),
    Standard(gen_ai.GEN_AI_OUTPUT_MESSAGES, Type.STRING, "Only with content capture"),
)

EVALUATION_ATTRIBUTES: Final = (
    Standard(gen_ai.GEN_AI_EVALUATION_NAME, Type.STRING, "`corevital.risk`"),
    Standard(
        gen_ai.GEN_AI_EVALUATION_SCORE_VALUE, Type.DOUBLE, "As the span's `corevital.risk.score`"
    ),
    Standard(
        gen_ai.GEN_AI_EVALUATION_SCORE_LABEL, Type.STRING, "As the span's `corevital.risk.level`"
    ),
    Standard(
        gen_ai.GEN_AI_EVALUATION_EXPLANATION,
        Type.STRING,
        "The five largest risk factors and what each adds",
    ),
)

_SECONDS: Final = tuple(0.01 * 2**power for power in range(14))

STANDARD_METRICS: Final = (
    Metric(
        gen_ai_metrics.GEN_AI_CLIENT_OPERATION_DURATION,
        "histogram",
        "s",
        "Duration of each call.",
        _SECONDS,
    ),
    Metric(
        gen_ai_metrics.GEN_AI_CLIENT_TOKEN_USAGE,
        "histogram",
        "{token}",
        "Tokens of each call, by `gen_ai.token.type`: `input` or `output`.",
        tuple(4**power for power in range(14)),
    ),
    Metric(
        gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION,
        "histogram",
        "s",
        "From the start of each call to its last token.",
        _SECONDS,
    ),
    Metric(
        gen_ai_metrics.GEN_AI_SERVER_TIME_TO_FIRST_TOKEN,
        "histogram",
        "s",
        "From the start of each call that succeeded to its first token.",
        (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10),
    ),
    Metric(
        gen_ai_metrics.GEN_AI_SERVER_TIME_PER_OUTPUT_TOKEN,
        "histogram",
        "s",
        "Mean time of the tokens after the first, of each call that succeeded.",
        (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5),
    ),
)

HEAD: Final = """# Telemetry

What CoreVital emits, as of this version. `python docs/generate_telemetry.py` writes this page from
the declarations in `src/corevital/semconv.py`.

Names that begin with `gen_ai.` are OpenTelemetry's
[conventions for generative AI](https://github.com/open-telemetry/semantic-conventions-genai); the
others are CoreVital's own. Units are in UCUM notation. What was not observed has no attribute:
`corevital.capture.*` says what is missing and why. [metrics.md](metrics.md) says how each number is
computed and how to read it.

- [Spans](#spans)
- [Events](#events)
- [Metrics](#metrics)
"""

SPANS: Final = """
## Spans

Every call of `generate`, and every request to a manager of continuous batching, is one span:

| Span | Kind | When |
|---|---|---|
| `{operation} {model}` | client | For each call. Inside the span of another GenAI instrumentation, that span gets the attributes instead. |
| `{operation} {model}` | client | For each request of `generate_batch`, of a manager or of `transformers serve --continuous-batching`, from when it is added until it ends ([serving.md](serving.md)). |
| `sequence {model}` | internal | A child for each sequence of a call that generates several, where audio is made for each of its codebooks. It has the attributes and events of its sequence; the span of the call has those of the call. |
"""  # noqa: E501

CONTENT: Final = """
Texts are sent only where `OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT` allows it
(`span_only`, `event_only` or `span_and_event`). With the latter two, the log event
`gen_ai.client.inference.operation.details` has the messages and the other standard attributes.
"""

SIZE: Final = f"""
### Size

The span of a generation, without events, and its [evaluation](#gen_aievaluationresult) stay under
{LIMIT} bytes of OTLP together, uncompressed, in every capture mode. Counted are the records
themselves with the standard attributes, not the resource and scope around them; not what the
application chooses to add: messages, and attributes of its own. An exception's message is cut to
{MOST_MESSAGE_BYTES} bytes. Where that is not enough, this is left out, in this order, until the
rest fits, and `{semconv.OMITTED}` counts the attributes:

"""

NEVER_CUT: Final = f"""
What remains, with everything found at once, has room beside a model name of 255 bytes and 150 bytes
of stop strings, conversation id, agent name and trace state. With more of these, or in the span of
another instrumentation, which adds to it afterwards, a span can be larger. The span of a call for
several sequences has {LIMIT} bytes of its own, and so has each child with its evaluation; of
hundreds of sequences, `gen_ai.response.finish_reasons` alone takes more.
"""

EVENTS: Final = """
## Events

`COREVITAL_STEP_EVENTS` says where CoreVital's own events go: to the span (`span`, the default), to
the log signal (`log`), to `both` or to `none`. A span takes as many as its event limit allows
(`OTEL_SPAN_EVENT_COUNT_LIMIT`, by default 128); the first, the last and the most remarkable steps
are among them. A log record has the name of its event as its event name and as its body, and
carries the identity of its span.
"""

EVALUATION: Final = """
### `gen_ai.evaluation.result`

The result of the assessment, as the standard log event.

"""

METRICS: Final = """
## Metrics

All metrics of a call or request have the attributes `gen_ai.operation.name`,
`gen_ai.provider.name` and `gen_ai.request.model`; the standard ones of a call that raised have
`error.type` besides. Exemplars lead to the span. The boundaries are advised: a view can set others.
Those of `corevital.continuous_batching.*` tell how busy the managers are now, and have only the
last two.

"""

METRIC_ATTRIBUTES: Final = """
Some metrics have an attribute of their own:

"""

# Headings for the areas of span attributes, by the second part of their names, in this order.
AREAS: Final = {
    "What was captured": ("capture", "batch", "sequence", "step", "attribute"),
    "Risk": ("risk",),
    "Health": ("health",),
    "Intervention": ("intervention",),
    "Signals, early warnings and blamed layers": ("signal", "early_warning", "blame"),
    "Summaries of the generation": (),
    "Summaries of the prompt": ("prompt", "encoder"),
}


def page() -> str:
    """The whole page."""
    return "".join(
        [
            HEAD,
            SPANS,
            "\n### Standard attributes\n\n",
            _standard_table(STANDARD_ATTRIBUTES),
            CONTENT,
            *_span_attributes(),
            SIZE,
            _cuts(),
            NEVER_CUT,
            EVENTS,
            *_own_events(),
            EVALUATION,
            _standard_table(EVALUATION_ATTRIBUTES),
            METRICS,
            _metric_table(semconv.METRICS),
            METRIC_ATTRIBUTES,
            _attribute_table(_of(Place.METRIC)),
            "\nStandard metrics:\n\n",
            _metric_table(STANDARD_METRICS),
        ]
    )


def _of(place: Place) -> list[Attribute]:
    return [each for each in semconv.ATTRIBUTES if place in each.places]


def _span_attributes() -> Iterable[str]:
    named = {area: title for title, areas in AREAS.items() for area in areas}
    (rest,) = (title for title, areas in AREAS.items() if not areas)
    for title in AREAS:
        attributes = [
            each for each in _of(Place.SPAN) if named.get(each.name.split(".")[1], rest) == title
        ]
        yield f"\n### {title}\n\n{_attribute_table(attributes)}"


def _cuts() -> str:
    return _table(
        ("Attributes", "What is kept", "Because"),
        ((", ".join(map(_code, each.names)), _kept(each), f"{each.why}.") for each in CUTS),
    )


def _kept(cut: Cut) -> str:
    if not cut.keep:
        return "Nothing"
    types = {each.type for each in semconv.ATTRIBUTES if each.name in cut.names}
    what = "characters" if Type.STRING in types else "entries"
    return f"{cut.keep} {what}" if cut.keep > 1 else "The first"


def _own_events() -> Iterable[str]:
    for event in semconv.EVENTS:
        attributes = _of(Place(event.name))
        yield f"\n### `{event.name}`\n\n{event.brief}\n\n{_attribute_table(attributes)}"


def _attribute_table(attributes: Iterable[Attribute]) -> str:
    return _table(
        ("Attribute", "Type", "Unit", "Meaning"),
        ((_code(each.name), each.type, _code(each.unit), each.brief) for each in attributes),
    )


def _standard_table(attributes: Iterable[Standard]) -> str:
    return _table(
        ("Attribute", "Type", "Meaning"),
        ((_code(each.name), each.type, f"{each.meaning}.") for each in attributes),
    )


def _metric_table(metrics: Iterable[Metric]) -> str:
    return _table(
        ("Metric", "Instrument", "Unit", "Meaning", "Boundaries"),
        (
            (
                _code(each.name),
                each.instrument,
                _code(each.unit),
                each.brief,
                ", ".join(f"{bound:.8g}" for bound in each.buckets),
            )
            for each in metrics
        ),
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def main(arguments: Sequence[str]) -> int:
    """Write the page, or with ``--check`` only say whether it is up to date."""
    if "--check" not in arguments:
        TARGET.write_text(page(), encoding="utf-8")
        return 0
    if TARGET.is_file() and TARGET.read_text(encoding="utf-8") == page():
        return 0
    print(f"{TARGET.name} is not up to date: run python docs/{Path(__file__).name}")
    return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
