"""Span attributes of a record and its assessment."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from corevital import semconv
from corevital.assess.assessment import Assessment
from corevital.assess.blame import LayerBlame
from corevital.assess.fingerprint import VERSION as FINGERPRINT_VERSION
from corevital.assess.loops import Loop, longest_loop
from corevital.assess.narrative import narrative
from corevital.assess.observed import mean, observed
from corevital.assess.uncertainty import Uncertainty
from corevital.record import (
    AttentionColumns,
    Captured,
    CaptureReport,
    EncoderSummary,
    GenerationRecord,
    LogitColumns,
    PromptColumns,
)

# A fault in a deep model can blame a hundred layers, each with words of its own: without a limit,
# the span would grow with the model.
MOST_BLAMED_LAYERS: Final = 10
MOST_BLAME_REASONS: Final = 2

Value = str | bool | int | float | Sequence[str] | Sequence[int] | Sequence[float]


def record_attributes(record: GenerationRecord) -> dict[str, Value]:
    """What was observed, in numbers."""
    return dict(_finite(_record_attributes(record)))


def assessment_attributes(assessment: Assessment) -> dict[str, Value]:
    """What the observations mean."""
    return dict(_finite(_assessment_attributes(assessment)))


def narrative_attributes(
    record: GenerationRecord, assessment: Assessment, token_texts: Sequence[str] | None
) -> dict[str, Value]:
    """The same in words; ``token_texts`` only where content may be sent."""
    return {semconv.NARRATIVE: narrative(record, assessment, token_texts)}


def capture_attributes(report: CaptureReport) -> dict[str, Value]:
    """What was observed, and why the rest was not."""
    attributes: dict[str, Value] = {
        semconv.CAPTURE_MODE: report.mode.value,
        semconv.CAPTURE_LOGITS: _availability(report.logits),
        semconv.CAPTURE_HIDDEN: _availability(report.hidden),
        semconv.CAPTURE_ATTENTION: _availability(report.attention),
        semconv.CAPTURE_PROMPT: _availability(report.prompt),
    }
    of_encoder = {
        semconv.CAPTURE_CROSS_ATTENTION: report.cross_attention,
        semconv.CAPTURE_ENCODER_HIDDEN: report.encoder_hidden,
        semconv.CAPTURE_ENCODER_ATTENTION: report.encoder_attention,
    }
    attributes |= {
        name: _availability(captured)
        for name, captured in of_encoder.items()
        if captured is not None
    }
    if report.full_from_step is not None:
        attributes[semconv.CAPTURE_FULL_FROM] = report.full_from_step
    if report.failures:
        attributes[semconv.CAPTURE_FAILURES] = report.failures
    if report.stop_conditions:
        attributes[semconv.INTERVENTION_CONDITIONS] = list(report.stop_conditions)
    if report.stop_unavailable is not None:
        attributes[semconv.INTERVENTION_UNAVAILABLE] = report.stop_unavailable
    return attributes


def intervention_attributes(record: GenerationRecord) -> dict[str, Value]:
    """Why the sequence was stopped early; nothing when it was not."""
    if (stopped := record.stopped_early) is None:
        return {}
    return {
        semconv.INTERVENTION_REASON: stopped.reason,
        semconv.INTERVENTION_STEP: stopped.step,
    }


def _availability(captured: Captured) -> str:
    return "captured" if captured.available else f"unavailable: {captured.reason}"


def _record_attributes(record: GenerationRecord) -> Iterator[tuple[str, Value]]:
    yield from capture_attributes(record.capture).items()
    yield from intervention_attributes(record).items()
    yield semconv.CAPTURE_STEPS, record.steps
    if record.prompt_hash is not None:
        yield semconv.PROMPT_HASH, record.prompt_hash
    if record.steps:
        first = (int(record.step_time_ns[0]) - record.start_time_ns) / 1e9
        yield semconv.TIME_TO_FIRST_TOKEN, first
    if record.steps > 1:
        span = int(record.step_time_ns[-1]) - int(record.step_time_ns[0])
        yield semconv.TIME_PER_OUTPUT_TOKEN, span / 1e9 / (record.steps - 1)
    if record.logits is not None:
        yield from _logit_attributes(record.logits)
    if record.attention is not None:
        yield semconv.ATTENTION_ENTROPY_MEAN, _mean(record.attention.entropy_mean)
        share = _collapsed_share(record.attention, record.steps_without_choice)
        yield semconv.ATTENTION_COLLAPSED_SHARE, share
    if (cross := record.cross_attention) is not None:
        yield semconv.CROSS_ATTENTION_ENTROPY_MEAN, _mean(cross.entropy_mean)
        yield semconv.CROSS_ATTENTION_NORMALIZED_MEAN, _mean(cross.normalized_entropy_mean)
        yield semconv.CROSS_ATTENTION_COLLAPSED_SHARE, _collapsed_share(cross)
    yield from _prompt_attributes(record.prompt)
    if record.encoder is not None:
        yield from _encoder_attributes(record.encoder)


def _logit_attributes(logits: LogitColumns) -> Iterator[tuple[str, Value]]:
    yield semconv.ENTROPY_MEAN, _mean(logits.entropy)
    yield semconv.ENTROPY_MAX, _largest(logits.entropy)
    yield semconv.SURPRISAL_MEAN, _mean(logits.surprisal)
    yield semconv.SURPRISAL_MAX, _largest(logits.surprisal)
    yield semconv.MARGIN_MEAN, _mean(logits.margin)
    yield semconv.MARGIN_MIN, -_largest(-logits.margin)
    yield semconv.TOP_K_MASS_MEAN, _mean(logits.top_k_mass)


def _collapsed_share(attention: AttentionColumns, without_choice: int = 0) -> float:
    """Share of collapsed heads, but for the first steps, at which there was one key to see."""
    share = attention.collapsed_heads / attention.heads
    seen = np.isfinite(attention.entropy_mean)
    seen[:without_choice] = False
    return mean(share[seen])


def _encoder_attributes(encoder: EncoderSummary) -> Iterator[tuple[str, Value]]:
    non_finite: set[int] = set()
    if (hidden := encoder.hidden) is not None:
        yield semconv.ENCODER_L2_MEAN, _mean(hidden.l2_norm)
        yield semconv.ENCODER_MAX_ABS, _largest(hidden.max_abs)
        non_finite |= set(hidden.layers[hidden.non_finite].tolist())
    if (attention := encoder.attention) is not None:
        yield semconv.ENCODER_ENTROPY_MEAN, _mean(attention.entropy_mean)
        share = float(attention.collapsed_heads.sum() / attention.heads.sum())
        yield semconv.ENCODER_COLLAPSED_SHARE, share
        non_finite |= set(attention.layers[attention.non_finite].tolist())
    if non_finite:
        yield semconv.ENCODER_NON_FINITE_LAYERS, sorted(non_finite)


def _prompt_attributes(prompt: PromptColumns) -> Iterator[tuple[str, Value]]:
    if prompt.surprisal is not None:
        yield semconv.PROMPT_SURPRISAL_MEAN, _mean(prompt.surprisal)
        yield semconv.PROMPT_SURPRISAL_MAX, _largest(prompt.surprisal)
    if prompt.layer_transformation is not None:
        yield semconv.PROMPT_TRANSFORMATION_MEAN, _mean(prompt.layer_transformation)
    if prompt.basin is not None:
        yield semconv.PROMPT_BASIN_MEAN, _mean(prompt.basin)
    if prompt.sparse is not None:
        yield semconv.PROMPT_SPARSE_WEIGHTS, prompt.sparse.total


def _assessment_attributes(assessment: Assessment) -> Iterator[tuple[str, Value]]:
    risk = assessment.risk
    yield semconv.RISK_SCORE, risk.score
    yield semconv.RISK_SOURCE, risk.source.value
    if risk.calibration is not None:
        yield semconv.CALIBRATION_RISK, risk.calibration
    yield semconv.RISK_HEURISTIC, risk.heuristic
    yield semconv.RISK_LEVEL, risk.level.value
    yield semconv.RISK_FACTORS, [factor.name for factor in risk.factors]
    yield semconv.RISK_CONTRIBUTIONS, [factor.contribution for factor in risk.factors]
    flags = assessment.flags
    yield semconv.NAN_OR_INF, flags.nan_or_inf
    yield semconv.REPETITION_LOOP, flags.repetition_loop
    yield semconv.MID_LAYER_ANOMALY, flags.mid_layer_anomaly
    yield semconv.ATTENTION_COLLAPSE, flags.attention_collapse
    if flags.attention_collapse:
        yield semconv.ATTENTION_COLLAPSE_SEVERITY, flags.attention_collapse_severity
    yield semconv.HIGH_ENTROPY_STEPS, flags.high_entropy_steps
    yield from _repetition_attributes(assessment.loops)
    yield from _uncertainty_attributes(assessment.uncertainty)
    signals = assessment.signals
    yield semconv.SIGNAL_NAMES, [signal.name for signal in signals]
    if signals:
        yield semconv.SIGNAL_SEVERITIES, [signal.severity for signal in signals]
        yield semconv.SIGNAL_EVIDENCE, [signal.evidence for signal in signals]
    yield semconv.FINGERPRINT_VECTOR, list(assessment.fingerprint)
    yield semconv.FINGERPRINT_VERSION, FINGERPRINT_VERSION
    yield semconv.CONSISTENCY_VIOLATIONS, [str(broken) for broken in assessment.consistency]
    yield semconv.EARLY_WARNING_SCORE, assessment.early_warning.score
    yield semconv.EARLY_WARNING_SIGNALS, list(assessment.early_warning.signals)
    yield from _blame_attributes(assessment.blame)
    yield from _calibration_attributes(assessment)


def _blame_attributes(blame: tuple[LayerBlame, ...]) -> Iterator[tuple[str, Value]]:
    worst = sorted(blame, key=lambda each: (-each.severity, each.layer))
    told = worst[:MOST_BLAME_REASONS]
    yield semconv.BLAME_LAYERS, [each.layer for each in worst[:MOST_BLAMED_LAYERS]]
    if told:
        yield semconv.BLAME_SEVERITIES, [each.severity for each in told]
        yield semconv.BLAME_REASONS, ["; ".join(each.reasons) for each in told]
    if len(blame) > MOST_BLAMED_LAYERS:
        yield semconv.BLAME_OMITTED, len(blame) - MOST_BLAMED_LAYERS


def _repetition_attributes(loops: tuple[Loop, ...]) -> Iterator[tuple[str, Value]]:
    loop = longest_loop(loops)
    yield semconv.REPETITION_DETECTED, loop is not None
    if loop is None:
        return
    yield semconv.REPETITION_ONSET, loop.onset_step
    yield semconv.REPETITION_PERIOD, loop.period
    yield semconv.REPETITION_REPEATS, loop.repeats
    if loop.end_step is not None:
        yield semconv.REPETITION_END, loop.end_step


def _uncertainty_attributes(found: Uncertainty) -> Iterator[tuple[str, Value]]:
    yield semconv.UNCERTAINTY_NLL, found.negative_log_likelihood
    yield semconv.UNCERTAINTY_NLL_PER_TOKEN, found.negative_log_likelihood_per_token
    yield semconv.UNCERTAINTY_ENTROPY_MEAN, found.mean_entropy
    yield semconv.UNCERTAINTY_ENTROPY_MAX, found.max_entropy
    yield semconv.UNCERTAINTY_MARGIN_MEAN, found.mean_margin
    yield semconv.UNCERTAINTY_RAUQ, found.rauq


def _calibration_attributes(assessment: Assessment) -> Iterator[tuple[str, Value]]:
    if (divergence := assessment.divergence) is not None:
        yield semconv.CALIBRATION_BASELINE, divergence.baseline
        if divergence.score is not None:
            yield semconv.BASELINE_DIVERGENCE, divergence.score
        descriptions = [anomaly.description for anomaly in divergence.anomalies]
        yield semconv.BASELINE_ANOMALIES, descriptions
    if assessment.calibration_refused is not None:
        yield semconv.CALIBRATION_REFUSED, assessment.calibration_refused


def _finite(pairs: Iterator[tuple[str, Value]]) -> Iterator[tuple[str, Value]]:
    """Without numbers that are not finite: what was not observed has no attribute."""
    for name, value in pairs:
        if not isinstance(value, float) or math.isfinite(value):
            yield name, value


def _mean(values: NDArray[np.float32]) -> float:
    return mean(observed(values))


def _largest(values: NDArray[np.float32]) -> float:
    return float(observed(values).max(initial=-math.inf))
