"""Narrative: what was found in one generation, in a few sentences with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from corevital.assess.assessment import Assessment
from corevital.assess.blame import NON_FINITE_SEVERITY, LayerBlame
from corevital.assess.early_warning import (
    ENTROPY_ACCELERATING,
    ENTROPY_MARGIN_DIVERGENCE,
    MARGIN_COLLAPSED,
    MARGIN_DECLINING,
    SURPRISAL_VOLATILE,
)
from corevital.assess.flags import (
    ATTENTION_COLLAPSE,
    MID_LAYER_ANOMALY,
    NAN_OR_INF,
    REPETITION_LOOP,
)
from corevital.assess.heuristic_risk import (
    COMPOUND_PREFIX,
    ELEVATED_ENTROPY,
    ELEVATED_SURPRISAL,
    ENTROPY_RISING,
    LOW_CONFIDENCE_MARGIN,
    LOW_TOP_K_MASS,
)
from corevital.assess.loops import Loop, longest_loop
from corevital.assess.observed import mean, observed
from corevital.assess.risk import Risk, RiskLevel, RiskSource
from corevital.assess.signals import (
    ATTENTION_BOTTLENECK,
    CONFIDENT_CONFUSION,
    CONFIDENT_REPETITION_RISK,
    CONTEXT_LOSS,
    DEGENERATING_GENERATION,
)
from corevital.assess.wording import counted, decimal, listed, printable, shortened
from corevital.intervention import Condition
from corevital.record import Captured, GenerationRecord

MOST_BYTES: Final = 1000

_TOKEN_CHARACTERS: Final = 24
_DETAIL_CHARACTERS: Final = 100
_SIGNALS_SHOWN: Final = 2
_LAYERS_SHOWN: Final = 2
_FACTORS_SHOWN: Final = 2

_FACTORS: Final = {
    NAN_OR_INF: "NaN or Inf",
    REPETITION_LOOP: "a repetition loop",
    MID_LAYER_ANOMALY: "a mid-layer anomaly",
    ATTENTION_COLLAPSE: "attention collapse",
    ELEVATED_ENTROPY: "high entropy",
    ENTROPY_RISING: "rising entropy",
    LOW_CONFIDENCE_MARGIN: "a low margin",
    LOW_TOP_K_MASS: "a low top-k mass",
    ELEVATED_SURPRISAL: "high surprisal",
}
_FLAGS: Final = {
    NAN_OR_INF: "NaN or Inf in the model's numbers",
    REPETITION_LOOP: "the last layer repeats one state",
    MID_LAYER_ANOMALY: "a middle layer is broken or far larger than the first layers",
    ATTENTION_COLLAPSE: "attention heads collapsed onto single keys",
}
_SIGNALS: Final = {
    CONTEXT_LOSS: "it is uncertain and skips the middle of the prompt",
    CONFIDENT_CONFUSION: "its choices are broad, yet each has one clear favourite",
    DEGENERATING_GENERATION: "it degenerates from step to step",
    ATTENTION_BOTTLENECK: "it is uncertain and many heads look at one key only",
    CONFIDENT_REPETITION_RISK: "it is so sure of its last tokens that they may repeat",
}
_STOPS: Final[dict[str, str]] = {
    Condition.REPETITION: "repetition",
    Condition.NON_FINITE: "NaN or Inf",
    Condition.RISK: "its risk",
}
_WARNINGS: Final = {
    ENTROPY_ACCELERATING: "entropy rises ever faster",
    MARGIN_COLLAPSED: "the margin has collapsed",
    MARGIN_DECLINING: "the margin has declined",
    SURPRISAL_VOLATILE: "surprisal is volatile",
    ENTROPY_MARGIN_DIVERGENCE: "entropy and margin are both high",
}


def narrative(
    record: GenerationRecord, assessment: Assessment, token_texts: Sequence[str] | None = None
) -> str:
    """What ``assessment`` says of ``record``, in two to six sentences of printable text.

    Below 1024 bytes of UTF-8: where there is more to say, what matters least is left out. Steps
    and layers are zero-based, as everywhere.

    Args:
        record: the generation.
        assessment: what `assess` found in it.
        token_texts: the text of every token, where content may be shown.
    """
    peak = _peak(record, token_texts)
    sentences = [_verdict(record, assessment), _uncertainty(record, assessment, peak)]
    advice = _advice(record, assessment, peak)
    room = MOST_BYTES - _bytes(" ".join([*sentences, *([advice] if advice else [])]))
    for sentence in (_signals(assessment), _findings(assessment), _layers(assessment.blame)):
        if sentence and (needed := _bytes(sentence) + 1) <= room:
            sentences.append(sentence)
            room -= needed
    return " ".join([*sentences, *([advice] if advice else [])])


@dataclass(frozen=True, slots=True)
class _Peak:
    """The step of the largest entropy, in bits; ``token`` in quotes where its text is known."""

    step: int
    bits: float
    token: str | None


def _peak(record: GenerationRecord, token_texts: Sequence[str] | None) -> _Peak | None:
    if record.logits is None or not np.isfinite(record.logits.entropy).any():
        return None
    entropy = np.where(np.isfinite(record.logits.entropy), record.logits.entropy, -np.inf)
    step = int(entropy.argmax())
    token = None
    if token_texts is not None and step < len(token_texts):
        # The first characters are enough of a text that may be very long.
        start = printable(token_texts[step][: _TOKEN_CHARACTERS + 1])
        token = f'"{shortened(start, _TOKEN_CHARACTERS)}"'
    return _Peak(step, float(entropy[step]), token)


def _verdict(record: GenerationRecord, assessment: Assessment) -> str:
    risk = assessment.risk
    calibrated = ", calibrated" if risk.source is RiskSource.CALIBRATED else ""
    sentence = f"{risk.level.value.capitalize()} risk ({risk.score:.2f}{calibrated})"
    sentence += f" over {counted(record.steps, 'token')}"
    if (stopped := record.stopped_early) is not None:
        sentence += f", stopped there for {_STOPS.get(stopped.reason, stopped.reason)}"
    if scope := _scope(record):
        sentence += f", judged {scope}"
    if causes := _causes(risk):
        sentence += f"; the heuristic ({risk.heuristic:.2f}) names {causes}"
    if _is_calm(assessment):
        sentence += ": no flag, signal or early warning"
        sees_layers = record.hidden is not None or record.attention is not None
        if sees_layers and not assessment.blame:
            sentence += ", and no layer stands out"
    return sentence + "."


def _causes(risk: Risk) -> str:
    """What the published heuristic says of a risk that is not low."""
    if risk.level is RiskLevel.LOW:
        return ""
    largest = sorted(risk.factors, key=lambda factor: -factor.contribution)[:_FACTORS_SHOWN]
    return listed(
        [
            f"{_factor(factor.name)} ({factor.contribution:.2f})"
            for factor in largest
            if factor.contribution > 0.0
        ]
    )


def _factor(name: str) -> str:
    return _FACTORS.get(name, name.removeprefix(COMPOUND_PREFIX).replace("_", " "))


def _scope(record: GenerationRecord) -> str:
    """How much of the model the assessment knows, where that is not everything."""
    capture, scope = record.capture, []
    parts = {"logits": capture.logits, "hidden states": capture.hidden}
    parts["attention"] = capture.attention
    if capture.cross_attention is not None:
        parts["cross-attention"] = capture.cross_attention
    if missing := [name for name, part in parts.items() if not part.available]:
        scope.append(f"without {listed(missing)}{_reason(list(parts.values()))}")
    seen = {
        int(layer)
        for part in (record.hidden, record.attention)
        if part is not None
        for layer in part.layers
    }
    if seen and record.model.layers is not None and len(seen) < record.model.layers:
        logits = "the logits and " if capture.logits.available else ""
        scope.append(f"by {logits}{len(seen)} of {counted(record.model.layers, 'layer')}")
    if capture.full_from_step is not None:
        scope.append(f"by every layer from step {capture.full_from_step} on")
    return " and ".join(scope)


def _reason(parts: Sequence[Captured]) -> str:
    """Why parts are missing, if for one and the same reason."""
    reasons = {part.reason for part in parts if not part.available}
    only = reasons.pop() if len(reasons) == 1 else None
    return "" if only is None else f" ({shortened(printable(only), _DETAIL_CHARACTERS)})"


def _is_calm(assessment: Assessment) -> bool:
    """Whether nothing, or nothing but layers, speaks against the generation."""
    divergence = assessment.divergence
    return (
        assessment.risk.level is RiskLevel.LOW
        and not any(getattr(assessment.flags, name) for name in _FLAGS)
        and not assessment.signals
        and not assessment.early_warning.signals
        and not assessment.loops
        and not assessment.consistency
        and (divergence is None or not divergence.anomalies)
    )


def _uncertainty(record: GenerationRecord, assessment: Assessment, peak: _Peak | None) -> str:
    if record.logits is None or peak is None:
        return "Its next-token entropy is not known."
    entropy, margin = observed(record.logits.entropy), observed(record.logits.margin)
    token = f", token {peak.token}" if peak.token is not None else ""
    if entropy.size == 1:
        sentence = f"Entropy is {decimal(peak.bits)} bits (step {peak.step}{token})"
    else:
        sentence = (
            f"Entropy averages {decimal(mean(entropy))} bits and peaks at {decimal(peak.bits)} "
            f"(step {peak.step}{token})"
        )
    if high := assessment.flags.high_entropy_steps:
        verb = "counts" if high == 1 else "count"
        sentence += f"; {high} of {counted(entropy.size, 'step')} {verb} as high-entropy"
    elif margin.size:
        sentence += f"; the margin averages {decimal(mean(margin))}"
    return sentence + "."


def _signals(assessment: Assessment) -> str:
    found = sorted(assessment.signals, key=lambda signal: -signal.severity)
    clauses = [
        f"{_SIGNALS.get(signal.name, signal.name)} "
        f"({shortened(signal.evidence, _DETAIL_CHARACTERS)})"
        for signal in found[:_SIGNALS_SHOWN]
    ]
    if more := found[_SIGNALS_SHOWN:]:
        clauses.append(f"{counted(len(more), 'more signal')} of this kind")
    return _sentence("; ".join(clauses))


def _findings(assessment: Assessment) -> str:
    parts = []
    if (loop := longest_loop(assessment.loops)) is not None:
        parts.append(_loop(loop))
    if flags := [words for name, words in _FLAGS.items() if getattr(assessment.flags, name)]:
        parts.append(f"{_heading('flag', len(flags))}: {listed(flags)}")
    raised = [name for name in assessment.early_warning.signals if name not in _FLAGS]
    if raised:
        warnings = listed([_WARNINGS.get(name, name) for name in raised])
        parts.append(f"{_heading('early warning', len(raised))}: {warnings}")
    if (divergence := assessment.divergence) is not None and divergence.anomalies:
        worst = shortened(divergence.anomalies[0].description, _DETAIL_CHARACTERS)
        parts.append(f"unlike healthy runs: {worst}")
    return _sentence("; ".join(parts))


def _loop(loop: Loop) -> str:
    phrase = "one token" if loop.period == 1 else f"a phrase of {loop.period} tokens"
    stretch = "its last" if loop.end_step is None else "its"
    return f"{stretch} {loop.length} tokens from step {loop.onset_step} on repeat {phrase}"


def _layers(blame: Sequence[LayerBlame]) -> str:
    worst = sorted(blame, key=lambda layer: -layer.severity)
    clauses = [
        f"layer {layer.layer} stands out ({reasons})"
        for layer in worst[:_LAYERS_SHOWN]
        for reasons in [shortened("; ".join(layer.reasons), _DETAIL_CHARACTERS)]
    ]
    if more := worst[_LAYERS_SHOWN:]:
        clauses.append(f"so {'does' if len(more) == 1 else 'do'} {counted(len(more), 'other')}")
    return _sentence(listed(clauses))


def _heading(noun: str, number: int) -> str:
    return noun if number == 1 else f"{noun}s"


def _sentence(clauses: str) -> str:
    return f"{clauses[0].upper()}{clauses[1:]}." if clauses else ""


def _advice(record: GenerationRecord, assessment: Assessment, peak: _Peak | None) -> str:
    """The one thing to do next; empty for a clean generation."""
    return next(_advices(record, assessment, peak), "")


def _advices(record: GenerationRecord, assessment: Assessment, peak: _Peak | None) -> Iterator[str]:
    """What to do, the most urgent first."""
    if assessment.consistency:
        broken = shortened(str(assessment.consistency[0]), _DETAIL_CHARACTERS)
        yield f"Trust none of this before the record is right: {broken}."
    flags, found = assessment.flags, {signal.name for signal in assessment.signals}
    worst = min(assessment.blame, key=lambda layer: (-layer.severity, layer.layer), default=None)
    if flags.nan_or_inf:
        is_source = worst is not None and worst.severity == NON_FINITE_SEVERITY
        where = f" of layer {worst.layer}, the first with it" if worst and is_source else ""
        yield f"Check the weights{where}, and run again in float32."
    if (loop := longest_loop(assessment.loops)) is not None:
        yield (
            f"Drop the text from step {loop.onset_step + loop.period} on, which repeats what was "
            "said, or set repetition_penalty or no_repeat_ngram_size."
        )
    if flags.repetition_loop or CONFIDENT_REPETITION_RISK in found:
        last = max(record.steps - 5, 0)
        yield (
            f"Read the text from step {last} on; if it repeats, set repetition_penalty or "
            "no_repeat_ngram_size."
        )
    if CONTEXT_LOSS in found:
        yield "Shorten the prompt, or move what matters to its beginning or end."
    if DEGENERATING_GENERATION in found:
        yield f"Allow fewer than {counted(record.steps, 'new token')}, or ask for a shorter answer."
    if flags.mid_layer_anomaly or flags.attention_collapse or ATTENTION_BOTTLENECK in found:
        yield "Compare the corevital.layers event with that of a healthy run of the same model."
    if peak is not None and not _is_calm(assessment):
        yield f"Check what the text says from step {peak.step} on, where it is least certain."
    if worst is not None:
        yield f"Compare layer {worst.layer} with that of a healthy run of the same model."


def _bytes(text: str) -> int:
    return len(text.encode())
