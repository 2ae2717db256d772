"""Generations of which as much is to be told as can be, as records and assessments."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
from hypothesis import strategies as st

from corevital.assess.assessment import Assessment
from corevital.assess.blame import LayerBlame
from corevital.assess.consistency import Violation
from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.assess.early_warning import SEVERITY as WARNINGS
from corevital.assess.early_warning import EarlyWarning
from corevital.assess.fingerprint import NAMES
from corevital.assess.flags import HealthFlags
from corevital.assess.heuristic_risk import RiskFactor
from corevital.assess.loops import Loop
from corevital.assess.risk import Risk, RiskLevel, RiskSource
from corevital.assess.signals import SEVERITY as SIGNALS
from corevital.assess.signals import CompoundSignal
from corevital.assess.uncertainty import Uncertainty
from corevital.record import (
    Captured,
    CaptureMode,
    CaptureReport,
    EncoderAttention,
    EncoderHidden,
    EncoderSummary,
    GenerationRecord,
    HeadStatistics,
    StateStatistics,
    StoppedEarly,
)
from tests.telemetry.records import attention, full_record, hidden, without

FACTORS = (
    *("repetition_loop", "mid_layer_anomaly", "attention_collapse", "elevated_entropy"),
    *("entropy_rising", "low_confidence_margin", "low_topk_mass", "elevated_surprisal"),
    *(f"compound:{name}" for name in SIGNALS),
)
MOST_LAYERS = 126
MOST_REASON_CHARACTERS = 200
PARTS = ("logits", "hidden", "attention", "cross_attention")

texts = st.text(st.characters(codec="utf-8"), max_size=MOST_REASON_CHARACTERS)
words = st.text("abcde 0123456789.,:", max_size=150)
shares = st.floats(0, 1)
bits = st.floats(0, 1e9)
captured = st.one_of(st.just(Captured(True)), texts.map(lambda reason: Captured(False, reason)))


def some(values: tuple[str, ...]) -> st.SearchStrategy[tuple[str, ...]]:
    """Any of ``values``, in their order."""
    chosen = st.sets(st.sampled_from(values))
    return chosen.map(lambda names: tuple(name for name in values if name in names))


@st.composite
def reports(draw: st.DrawFn) -> CaptureReport:
    """What was captured: any reason for any signal."""
    return CaptureReport(
        draw(st.sampled_from(CaptureMode)),
        logits=draw(captured),
        hidden=draw(captured),
        attention=draw(captured),
        prompt=draw(captured),
        failures=draw(st.integers(0, 10**6)),
        full_from_step=draw(st.none() | st.integers(0, 10**6)),
        cross_attention=draw(captured),
        encoder_hidden=draw(captured),
        encoder_attention=draw(captured),
        stop_conditions=draw(some(("repetition", "non_finite", "risk"))),
        stop_unavailable=draw(st.none() | texts),
    )


def encoder(layers: int) -> EncoderSummary:
    """An encoder of so many layers, all with NaN."""
    index = np.arange(layers)
    ones, many = np.ones(layers, dtype=np.float32), np.ones(layers, dtype=np.int64)
    of_states = {each.name: ones for each in fields(StateStatistics)}
    of_heads = {each.name: ones for each in fields(HeadStatistics)}
    broken = {"layers": index, "non_finite": np.ones(layers, dtype=bool)}
    counts = {"heads": many, "collapsed_heads": many, "focused_heads": many}
    return EncoderSummary(
        EncoderHidden(**(of_states | broken)), EncoderAttention(**(of_heads | broken | counts))
    )


def longest_record() -> GenerationRecord:
    """Everything was observed, and yet every signal has a long reason why it was not."""
    seen = Captured(False, "é" * MOST_REASON_CHARACTERS)
    report = CaptureReport(
        CaptureMode.ON_RISK,
        logits=seen,
        hidden=seen,
        attention=seen,
        prompt=seen,
        failures=10**6,
        full_from_step=10**6,
        cross_attention=seen,
        encoder_hidden=seen,
        encoder_attention=seen,
        stop_conditions=("repetition", "non_finite", "risk"),
        stop_unavailable="é" * MOST_REASON_CHARACTERS,
    )
    return replace(
        full_record(300),
        capture=report,
        cross_attention=attention(300),
        encoder=encoder(MOST_LAYERS),
        prompt_hash="0123456789abcdef",
        stopped_early=StoppedEarly("non_finite", 299),
    )


def longest_assessment() -> Assessment:
    """Everything that can be found was found, in every layer and in as many words as there are."""
    identity = "m" * 255 + "@0123456789abcdef"
    anomaly = Anomaly("q", (), None, Direction.HIGHER, 2.0, "w" * 150)
    return Assessment(
        HealthFlags(True, True, True, True, 1.0, 10**6),
        tuple(CompoundSignal(name, 0.5, "w" * 120) for name in SIGNALS),
        EarlyWarning(0.9, tuple(WARNINGS)),
        tuple(LayerBlame(layer, 1.0, ("w" * 110,) * 5) for layer in range(MOST_LAYERS)),
        Risk(
            0.9,
            RiskLevel.CRITICAL,
            RiskSource.UNCALIBRATED,
            0.9,
            tuple(RiskFactor(name, 0.3) for name in FACTORS),
            identity,
        ),
        Divergence(identity, 0.9, (anomaly,) * 8),
        "r" * 3000,
        Uncertainty(*(1.0,) * 6),
        (Loop(0, 3, 10**6, 10**6),),
        (1.0,) * len(NAMES),
        tuple(
            Violation(f"rule_{i}_out_of_range", i, i, {"value": 1e-7 / 3}, 10**6) for i in range(30)
        ),
    )


@st.composite
def records(draw: st.DrawFn) -> GenerationRecord:
    """A record with any of its parts, of a decoder or an encoder-decoder, stopped early or not."""
    steps = draw(st.sampled_from([1, 8, 300]))
    stopped = draw(st.none() | st.just(StoppedEarly("non_finite", steps - 1)))
    record = replace(
        full_record(steps),
        hidden=hidden(steps),
        capture=draw(reports()),
        cross_attention=attention(steps),
        encoder=encoder(draw(st.integers(1, MOST_LAYERS))),
        prompt_hash="0123456789abcdef",
        stopped_early=stopped,
    )
    for part in draw(some((*PARTS, "encoder"))):
        record = without(record, part)
    return record


@st.composite
def assessments(draw: st.DrawFn) -> Assessment:
    """Everything that can be found, in any number of layers, signals and comparisons."""
    signals = draw(some(tuple(SIGNALS)))
    factors = draw(some(FACTORS))
    layers, severity, reason = draw(st.integers(0, MOST_LAYERS)), draw(shares), draw(words)
    anomalies = draw(st.lists(words, max_size=8))
    identity = draw(st.text("abc/-", min_size=1, max_size=255)) + "@0123456789abcdef"
    return Assessment(
        HealthFlags(
            nan_or_inf=draw(st.booleans()),
            repetition_loop=draw(st.booleans()),
            mid_layer_anomaly=draw(st.booleans()),
            attention_collapse=draw(st.booleans()),
            attention_collapse_severity=draw(shares),
            high_entropy_steps=10**6,
        ),
        tuple(CompoundSignal(name, SIGNALS[name], draw(words)) for name in signals),
        EarlyWarning(draw(shares), draw(some(tuple(WARNINGS)))),
        tuple(LayerBlame(layer, severity, (reason,) * 3) for layer in range(layers)),
        Risk(
            draw(shares),
            draw(st.sampled_from(RiskLevel)),
            draw(st.sampled_from(RiskSource)),
            draw(shares),
            tuple(RiskFactor(name, draw(shares)) for name in factors),
            draw(st.none() | st.just(identity)),
        ),
        Divergence(
            identity,
            draw(shares),
            tuple(Anomaly("q", (), None, Direction.HIGHER, 2.0, each) for each in anomalies),
        ),
        draw(st.none() | st.text("refused ", max_size=3000)),
        Uncertainty(*(draw(bits) for _ in range(6))),
        (Loop(0, 3, 10**6, draw(st.none() | st.just(10**6))),),
        tuple(draw(st.lists(bits, min_size=len(NAMES), max_size=len(NAMES)))),
        tuple(
            Violation(f"rule_{i}_out_of_range", i, i, {"value": 1e-7 / 3}, 10**6)
            for i in range(draw(st.integers(0, 30)))
        ),
    )
