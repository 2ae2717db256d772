"""Compound signals: patterns that no single statistic shows alone.

Names, conditions and severities are the published CoreVital heuristics.
"""

from __future__ import annotations

from dataclasses import dataclass

from corevital.assess.collapse import collapse_rate
from corevital.assess.observed import LogitSeries, Series, logit_series, mean, observed
from corevital.assess.trend import slope
from corevital.record import GenerationRecord, PromptColumns

RECENT_STEPS = 5

CONTEXT_LOSS = "context_loss"
CONFIDENT_CONFUSION = "confident_confusion"
DEGENERATING_GENERATION = "degenerating_generation"
ATTENTION_BOTTLENECK = "attention_bottleneck"
CONFIDENT_REPETITION_RISK = "confident_repetition_risk"

SEVERITY = {
    CONTEXT_LOSS: 0.75,
    CONFIDENT_CONFUSION: 0.5,
    DEGENERATING_GENERATION: 0.7,
    ATTENTION_BOTTLENECK: 0.65,
    CONFIDENT_REPETITION_RISK: 0.4,
}

CONFUSED_ENTROPY_BITS = 4.0
IGNORED_CONTEXT_BASIN = 0.3
CONFIDENT_MARGIN = 0.3
MIN_DEGENERATION_STEPS = 10
ENTROPY_BITS_PER_STEP = 0.05
MARGIN_PER_STEP = -0.01
SURPRISAL_BITS_PER_STEP = 0.05
BOTTLENECK_COLLAPSE_RATE = 0.2
BOTTLENECK_ENTROPY_BITS = 3.5
REPETITIVE_ENTROPY_BITS = 2.0
REPETITIVE_SURPRISAL_BITS = 1.0
REPETITIVE_TOP_K_MASS = 0.95


@dataclass(frozen=True, slots=True)
class CompoundSignal:
    """One pattern that was found; ``severity`` in [0, 1], ``evidence`` its numbers in words."""

    name: str
    severity: float
    evidence: str


def compound_signals(record: GenerationRecord) -> tuple[CompoundSignal, ...]:
    """The patterns that ``record`` shows, in a fixed order.

    A pattern whose statistics were not observed is not found.
    """
    logits = logit_series(record.logits)
    evidence = {
        CONTEXT_LOSS: _context_loss(logits, record.prompt),
        CONFIDENT_CONFUSION: _confident_confusion(logits),
        DEGENERATING_GENERATION: _degenerating_generation(logits),
        ATTENTION_BOTTLENECK: _attention_bottleneck(
            logits, collapse_rate(record.attention, record.steps_without_choice)
        ),
        CONFIDENT_REPETITION_RISK: _confident_repetition_risk(logits),
    }
    return tuple(
        CompoundSignal(name, SEVERITY[name], words)
        for name, words in evidence.items()
        if words is not None
    )


def _recent(values: Series) -> Series:
    return values[-RECENT_STEPS:]


def _context_loss(logits: LogitSeries, prompt: PromptColumns) -> str | None:
    """Uncertain now, while attention passed over the middle of the prompt."""
    if prompt.basin is None:
        return None
    entropy, basin = mean(_recent(logits.entropy)), mean(observed(prompt.basin))
    if not (entropy > CONFUSED_ENTROPY_BITS and basin < IGNORED_CONTEXT_BASIN):
        return None
    return f"recent entropy {entropy:.2f} bits, mean basin score {basin:.2f}"


def _confident_confusion(logits: LogitSeries) -> str | None:
    """A broad distribution that nevertheless has one clear favourite."""
    entropy, margin = mean(_recent(logits.entropy)), mean(_recent(logits.margin))
    if not (entropy > CONFUSED_ENTROPY_BITS and margin > CONFIDENT_MARGIN):
        return None
    return f"recent entropy {entropy:.2f} bits, recent margin {margin:.2f}"


def _degenerating_generation(logits: LogitSeries) -> str | None:
    """Entropy and surprisal climb while the margin falls, over the whole generation."""
    if logits.entropy.size < MIN_DEGENERATION_STEPS:
        return None
    entropy, margin = slope(logits.entropy), slope(logits.margin)
    surprisal = slope(logits.surprisal)
    if not (
        entropy > ENTROPY_BITS_PER_STEP
        and margin < MARGIN_PER_STEP
        and surprisal > SURPRISAL_BITS_PER_STEP
    ):
        return None
    return (
        f"per step: entropy {entropy:+.3f} bits, margin {margin:+.3f}, "
        f"surprisal {surprisal:+.3f} bits"
    )


def _attention_bottleneck(logits: LogitSeries, rate: Series) -> str | None:
    """Many heads look at one key only, and the model is uncertain."""
    collapsed, entropy = mean(rate), mean(logits.entropy)
    if not (collapsed > BOTTLENECK_COLLAPSE_RATE and entropy > BOTTLENECK_ENTROPY_BITS):
        return None
    return f"{collapsed:.0%} of heads collapsed, mean entropy {entropy:.2f} bits"


def _confident_repetition_risk(logits: LogitSeries) -> str | None:
    """So certain of every token that a loop is likely."""
    entropy, surprisal = mean(_recent(logits.entropy)), mean(_recent(logits.surprisal))
    mass = mean(_recent(logits.top_k_mass))
    if not (
        entropy < REPETITIVE_ENTROPY_BITS
        and surprisal < REPETITIVE_SURPRISAL_BITS
        and mass > REPETITIVE_TOP_K_MASS
    ):
        return None
    return (
        f"recent entropy {entropy:.2f} bits, recent surprisal {surprisal:.2f} bits, "
        f"recent top-k mass {mass:.3f}"
    )
