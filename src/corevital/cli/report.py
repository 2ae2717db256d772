"""The health of a run as a person reads it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Final

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from corevital.assess.assessment import Assessment
from corevital.assess.blame import LayerBlame
from corevital.assess.divergence import Divergence
from corevital.assess.loops import Loop, longest_loop
from corevital.assess.risk import USUAL_LEVELS, Risk
from corevital.assess.wording import printable
from corevital.cli.export import Delivery
from corevital.cli.outcome import Outcome, finite_max, finite_mean
from corevital.cli.palette import BAD, GOOD, LEVEL_COLOURS, NOTABLE, QUIET, Glyphs, glyphs
from corevital.cli.sparkline import condensed, mark
from corevital.record import Captured, CaptureMode, LogitColumns

_LABEL_WIDTH: Final = 9
_GAP: Final = 2
_BAR_WIDTH: Final = 30
_MOST_SPARKLINE_ROWS: Final = 8
_LEAST_SCALE_BITS: Final = 4.0
_SURPRISING_TOKENS: Final = 5
_SURPRISING_FROM_BITS: Final = 1.0
_CONTEXT_CHARACTERS: Final = 24
_BLAMED_LAYERS: Final = 5
_ANOMALIES: Final = 5

_FLAGS: Final = {
    "nan_or_inf": "NaN or Inf in the model's numbers",
    "repetition_loop": "the last layer's states stopped changing",
    "mid_layer_anomaly": "a middle layer's L2 norm is far above the early layers'",
    "attention_collapse": "attention heads collapsed onto single tokens",
}
_SIGNALS: Final = {
    "logits": "logits",
    "hidden": "hidden states",
    "attention": "attention",
    "cross_attention": "cross-attention",
    "encoder_hidden": "encoder's hidden states",
    "encoder_attention": "encoder's attention",
    "prompt": "prompt",
}

_ENDINGS: Final = {
    "stop": ", ended by itself",
    "length": ", ended by --max-new-tokens",
    "interrupted": ", interrupted",
}


class HealthReport:
    """Everything that is known when the generation has ended; a rich renderable."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Draw the report as wide as the console."""
        outcome, assessment = self._outcome, self._outcome.assessment
        drawn_with = glyphs(options)
        width = options.max_width - _LABEL_WIDTH - _GAP
        yield Rule(_title(outcome), style=QUIET, align="left")
        if assessment is not None:
            yield _section(
                ("Summary", Text(outcome.narrative or "")),
                ("Risk", _risk(assessment.risk, drawn_with)),
                ("Health", _health(outcome, assessment)),
                ("Signals", _signals(assessment)),
                ("Warning", _early_warning(assessment)),
                *_calibration(assessment),
            )
        if (logits := outcome.record.logits) is not None and outcome.record.steps:
            yield _section(
                ("Entropy", _entropy(outcome, logits, drawn_with, max(width, 1))),
                ("Surprise", _surprise(outcome, logits)),
            )
        yield _section(
            *([("Layers", _blame(assessment.blame))] if assessment is not None else []),
            ("Prompt", _prompt(outcome)),
            *_cross_attention(outcome),
        )
        yield _section(
            ("Captured", _captured(outcome)),
            ("Timing", _timing(outcome)),
        )


def trace_section(outcome: Outcome, delivery: Delivery) -> RenderableType:
    """Where the trace is; known once the telemetry was sent."""
    where = Text(outcome.trace_id)
    if not delivery.arrived:
        where.append("\nnot all of the telemetry was delivered", BAD)
    elif delivery.destination.endpoints:
        signals = ", ".join(delivery.destination.endpoints)
        where.append(f"\nsent to {delivery.destination.traces} ({signals})")
    else:
        where.append(f"\nappended to {delivery.destination.traces}, as there is no --otlp-endpoint")
    return _section(("Trace", where))


def _title(outcome: Outcome) -> Text:
    model = outcome.record.model
    layers = f", {model.layers} layers" if model.layers is not None else ""
    title = Text("CoreVital", "bold")
    title.append(f"  {model.name}{layers}, {outcome.dtype} on {outcome.device}", "not bold")
    return title


def _section(*rows: tuple[str, RenderableType]) -> RenderableType:
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(width=_LABEL_WIDTH, style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, content in rows:
        table.add_row(label, content)
    return Padding(table, (1, 0, 0, 0), expand=False)


def _risk(risk: Risk, drawn_with: Glyphs) -> RenderableType:
    colour = LEVEL_COLOURS[risk.level]
    filled = round(min(max(risk.score, 0.0), 1.0) * _BAR_WIDTH)
    headline = Text()
    headline.append(drawn_with.filled * filled, colour)
    headline.append(drawn_with.empty * (_BAR_WIDTH - filled), QUIET)
    headline.append(f"  {risk.score:.2f} {risk.level.value}", colour)
    headline.append(f" ({risk.source.value})", QUIET)
    headline.append(f"\nheuristic {risk.heuristic:.2f}", QUIET)
    factors = [(f"+{factor.contribution:.2f}", Text(factor.name)) for factor in risk.factors]
    return Group(headline, _listing(factors)) if factors else headline


def _health(outcome: Outcome, assessment: Assessment) -> Text:
    raised = [
        Text.assemble((name, BAD), f": {explanation}")
        for name, explanation in _FLAGS.items()
        if getattr(assessment.flags, name)
    ]
    if (loop := longest_loop(assessment.loops)) is not None:
        raised.append(Text.assemble(("repetition", BAD), f": {_loop(loop)}"))
    if not raised:
        capture = outcome.record.capture
        complete = (
            capture.mode is CaptureMode.FULL
            and capture.hidden.available
            and capture.attention.available
        )
        return Text("no flag raised" if complete else "no flag raised by what was captured", GOOD)
    return _lines(raised)


def _loop(loop: Loop) -> str:
    phrase = "one token" if loop.period == 1 else f"a phrase of {loop.period} tokens"
    if loop.end_step is None:
        return f"the last {loop.length} tokens repeat {phrase}, from step {loop.onset_step}"
    last = loop.end_step - 1
    return f"{loop.length} tokens repeat {phrase}, from step {loop.onset_step} to {last}"


def _signals(assessment: Assessment) -> RenderableType:
    if not assessment.signals:
        return Text("no compound signal", GOOD)
    return _listing(
        (
            f"{signal.severity:.2f}",
            Text.assemble((signal.name, _colour(signal.severity)), f": {signal.evidence}"),
        )
        for signal in assessment.signals
    )


def _early_warning(assessment: Assessment) -> RenderableType:
    warning = assessment.early_warning
    if not warning.signals:
        return Text("no early warning", GOOD)
    names = Text(", ".join(warning.signals), _colour(warning.score))
    return _listing([(f"{warning.score:.2f}", names)])


def _calibration(assessment: Assessment) -> Iterator[tuple[str, RenderableType]]:
    """What a baseline says, where one was given."""
    if assessment.divergence is not None:
        yield "Baseline", _divergence(assessment.divergence)
    if assessment.calibration_refused is not None:
        yield "Baseline", Text(assessment.calibration_refused, NOTABLE)


def _divergence(divergence: Divergence) -> RenderableType:
    if divergence.score is None:
        return Text("nothing of what it knows was captured", NOTABLE)
    verdict = "further off than healthy runs" if divergence.anomalies else "like healthy runs"
    headline = Text(f"{divergence.score:.2f} {verdict}", _colour(divergence.score))
    headline.append(f" ({divergence.baseline})", QUIET)
    shown = divergence.anomalies[:_ANOMALIES]
    return Group(headline, *(Text(each.description) for each in shown))


def _entropy(
    outcome: Outcome, logits: LogitColumns, drawn_with: Glyphs, width: int
) -> RenderableType:
    largest, mean = finite_max(logits.entropy), finite_mean(logits.entropy)
    # Never finer than this, or the noise of a model that is sure of everything would look like
    # hesitation.
    top = max(_LEAST_SCALE_BITS, largest or 0.0)
    values, size = condensed(logits.entropy.tolist(), width * _MOST_SPARKLINE_ROWS)
    sparkline = Text()
    for value in values:
        sparkline.append(
            mark(value, top, drawn_with.blocks), _entropy_colour(value, outcome.high_entropy_bits)
        )
    per_mark = "one mark a token" if size == 1 else f"one mark for the largest of {size} tokens"
    scale = f"{per_mark}, full height {top:.1f} bits"
    if largest is None or mean is None:
        return Group(sparkline, Text(scale, QUIET))
    summary = f"mean {mean:.2f}, largest {largest:.2f} bits"
    if outcome.assessment is not None:
        high = outcome.assessment.flags.high_entropy_steps
        summary += f"; {high} of {outcome.record.steps} above {outcome.high_entropy_bits:g}"
    return Group(Text(summary), sparkline, Text(scale, QUIET))


def _entropy_colour(bits: float, high_bits: float) -> str:
    if not math.isfinite(bits) or bits > high_bits:
        return BAD
    return NOTABLE if bits > high_bits / 2 else GOOD


def _surprise(outcome: Outcome, logits: LogitColumns) -> RenderableType:
    steps = outcome.most_surprising(_SURPRISING_TOKENS, _SURPRISING_FROM_BITS)
    if not steps:
        return Text(f"no token above {_SURPRISING_FROM_BITS:g} bit", GOOD)
    digits = len(str(max(steps)))
    return _listing(
        (
            f"{logits.surprisal[step]:.1f} bits",
            Text.assemble(
                (f"step {step:{digits}}  ", QUIET), *_in_context(outcome.token_texts, step)
            ),
        )
        for step in steps
    )


def _in_context(texts: tuple[str, ...], step: int) -> Iterator[str | tuple[str, str]]:
    """The token in brackets, after the words before it; spaces stay outside."""
    before = "".join(texts[max(step - _CONTEXT_CHARACTERS - 1, 0) : step])
    shown = before[-_CONTEXT_CHARACTERS:]
    if len(shown) < len(before):
        # From a whole word on, where words are separated.
        shown = "..." + (shown.partition(" ")[2] or shown)
    token = texts[step]
    word = token.lstrip(" ") or token
    yield printable(shown + token.removesuffix(word))
    yield (f"[{printable(word)}]", "bold")


def _blame(blame: tuple[LayerBlame, ...]) -> RenderableType:
    if not blame:
        return Text("no layer stands out", GOOD)
    worst = sorted(blame, key=lambda layer: -layer.severity)
    shown, hidden = worst[:_BLAMED_LAYERS], worst[_BLAMED_LAYERS:]
    listing = _listing(
        (
            f"{layer.severity:.2f}",
            Text.assemble(
                (f"layer {layer.layer}", _colour(layer.severity)), f": {'; '.join(layer.reasons)}"
            ),
        )
        for layer in shown
    )
    if not hidden:
        return listing
    others = ", ".join(str(layer) for layer in sorted(layer.layer for layer in hidden))
    return Group(listing, Text(f"and {'layer' if len(hidden) == 1 else 'layers'} {others}", QUIET))


def _prompt(outcome: Outcome) -> Text:
    prompt = outcome.record.prompt
    parts = [f"{outcome.prompt_tokens} tokens"]
    if outcome.is_chat:
        parts[0] += " (chat template)"
    mean, largest = finite_mean(prompt.surprisal), finite_max(prompt.surprisal)
    if mean is not None and largest is not None:
        parts.append(f"surprisal mean {mean:.2f}, largest {largest:.1f} bits")
    if (transformation := finite_mean(prompt.layer_transformation)) is not None:
        parts.append(f"layer transformation {transformation:.3f}")
    if (basin := finite_mean(prompt.basin)) is not None:
        parts.append(f"basin score {basin:.2f} (its middle against its ends)")
    return Text("; ".join(parts))


def _cross_attention(outcome: Outcome) -> Iterator[tuple[str, RenderableType]]:
    """How an encoder-decoder looked at its prompt, where that was observed."""
    cross = outcome.record.cross_attention
    if cross is None:
        return
    entropy, normalized = (
        finite_mean(cross.entropy_mean),
        finite_mean(cross.normalized_entropy_mean),
    )
    if entropy is not None and normalized is not None:
        words = f"cross-attention entropy mean {entropy:.2f} bits, {normalized:.2f} of the largest"
        yield "Source", Text(words)


def _captured(outcome: Outcome) -> Text:
    capture = outcome.record.capture
    captured: dict[str, Captured] = {
        label: part
        for name, label in _SIGNALS.items()
        if (part := getattr(capture, name)) is not None
    }
    seen = [label for label, part in captured.items() if part.available]
    mode = f"mode {capture.mode.value}"
    if capture.full_from_step is not None:
        mode += f", everything from step {capture.full_from_step} on"
    lines = [Text(f"{', '.join(seen) or 'nothing'} ({mode})")]
    unseen: dict[str | None, list[str]] = {}
    for label, part in captured.items():
        if not part.available:
            unseen.setdefault(part.reason, []).append(label)
    lines += [
        Text(f"not {', '.join(labels)}: {reason}", NOTABLE) for reason, labels in unseen.items()
    ]
    if capture.failures:
        lines.append(
            Text(f"failures while observing: {capture.failures} (--debug shows where)", BAD)
        )
    return _lines(lines)


def _timing(outcome: Outcome) -> Text:
    count = outcome.record.steps
    tokens = {0: "text", 1: "1 token"}.get(count, f"{count} tokens")
    ended = _ENDINGS.get(outcome.finish_reason or "", "")
    lines = [f"{tokens} in {_seconds(outcome.duration)}{ended}"]
    rates = []
    if (first := outcome.time_to_first_token) is not None:
        rates.append(f"first token after {_seconds(first)}")
    if (rate := outcome.tokens_per_second) is not None:
        rates.append(f"then {rate:.1f} tokens/s")
    if rates:
        lines.append(", ".join(rates))
    if (cost := outcome.capture_seconds) is not None and outcome.record.observed:
        share = f" ({cost / outcome.duration:.1%})" if outcome.duration > 0 else ""
        lines.append(f"capturing took {_seconds(cost)} of it{share}")
    return _lines(Text(line) for line in lines)


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms"


def _colour(severity: float) -> str:
    return LEVEL_COLOURS[USUAL_LEVELS.of(severity)]


def _listing(rows: Iterable[tuple[str, Text]]) -> Table:
    """Numbers, right-aligned, and what each belongs to, wrapped beside it."""
    table = Table.grid(padding=(0, _GAP, 0, 0), pad_edge=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    for number, text in rows:
        table.add_row(number, text)
    return table


def _lines(lines: Iterable[Text]) -> Text:
    return Text("\n").join(lines)
