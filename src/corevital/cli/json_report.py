"""The report for programs: one JSON object, whose keys stay what they are.

A number that is unknown is ``null``, never NaN; a whole part is ``null`` when nothing of it was
observed. Entropy and surprisal are in bits, times in seconds.

``schema_version``
    1. It changes when a key changes its meaning or goes; new keys may come without.
``corevital_version``
    The version that wrote this.
``model``
    ``name``, ``family``, ``architecture``, ``layers``, ``hidden_size``, ``vocabulary_size``,
    ``device``, ``dtype``.
``prompt``
    ``text``, ``tokens``, ``chat_template`` (whether it went through one), ``surprisal`` (``mean``,
    ``max``), ``layer_transformation`` and ``basin`` (means).
``text``, ``finish_reason``
    The generated text; ``stop``, ``length``, ``interrupted``, or ``null`` where it is unknown.
``narrative``
    What was found, in two to six sentences; ``null`` when nothing was observed.
``tokens``
    For each token that could be followed ``step``, ``id``, ``text``, ``seconds`` (since the
    start), ``entropy``, ``perplexity``, ``surprisal``, ``margin``, ``top_k_mass``.
``risk``
    ``score`` (0 to 1), ``level``, ``source`` (``calibrated``: a probability, ``uncalibrated``: a
    rank), ``calibration`` (id of the one that gave the score, or ``null``); the published
    ``heuristic`` (0 to 1) and its ``factors`` (``name``, ``contribution``).
``flags``
    ``nan_or_inf``, ``repetition_loop``, ``mid_layer_anomaly``, ``attention_collapse``,
    ``attention_collapse_severity``, ``high_entropy_steps``.
``loops``
    Each phrase that the text repeats: ``onset_step``, ``period`` and ``length`` (tokens),
    ``repeats`` (complete copies), ``end_step`` (``null`` when the text ended inside it).
``uncertainty``
    Of the whole sequence: ``negative_log_likelihood``, ``negative_log_likelihood_per_token``,
    ``mean_entropy``, ``max_entropy``, ``rauq`` (bits); ``mean_margin`` (low means uncertain).
``signals``, ``early_warning``, ``blame``
    Compound signals (``name``, ``severity``, ``evidence``); ``score`` and ``signals``; the layers
    at fault (``layer``, ``severity``, ``reasons``).
``calibration``
    ``baseline``: the ``id`` of the one that was compared with, the ``divergence`` (0 to 1), and the
    ``anomalies`` (``quantity``, ``layers``, ``worst_layer``, ``direction``, ``distance``,
    ``description``); ``null`` without one. ``refused``: why files were not applied, or ``null``.
``capture``
    ``mode``, ``full_from_step``, ``failures``, and for ``logits``, ``hidden``, ``attention``,
    ``prompt``, ``cross_attention``, ``encoder_hidden`` and ``encoder_attention`` whether it is
    ``available`` and, if not, the ``reason``; the last three are ``null`` without an encoder.
    ``stop_conditions``: what was to stop the generation; ``stop_unavailable``: which of these could
    not be told, and why, or ``null``.
``timing``
    ``time_to_first_token``, ``tokens_per_second``, ``duration``, ``capture`` (CoreVital's own).
``fingerprint``, ``consistency``
    25 numbers that describe the run; rules that the record breaks (``name``, ``step``, ``layer``,
    ``values``, ``places``).
``trace_id``, ``span_id``
    Of the generation's span, hexadecimal.
``destination``
    ``kind`` (``otlp`` or ``file``) and ``traces`` (the address or the file); ``endpoints`` by
    signal (``url``, ``protocol``); whether everything ``arrived``, and if not, the ``error``.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any, Final

from corevital.assess.assessment import Assessment
from corevital.assess.divergence import Divergence
from corevital.cli.destination import Signal
from corevital.cli.export import Delivery
from corevital.cli.outcome import Outcome, finite_max, finite_mean
from corevital.record import CaptureReport
from corevital.version import __version__

SCHEMA_VERSION: Final = 1
_LOGIT_COLUMNS: Final = ("entropy", "perplexity", "surprisal", "margin", "top_k_mass")
_NOT_ASSESSED: Final = (
    *("risk", "flags", "loops", "uncertainty", "signals", "early_warning", "blame"),
    *("fingerprint", "consistency", "calibration"),
)


def json_report(outcome: Outcome, delivery: Delivery) -> dict[str, Any]:
    """The report of one run, in values that JSON has."""
    report: dict[str, Any] = _without_unknown_numbers(
        {
            "schema_version": SCHEMA_VERSION,
            "corevital_version": __version__,
            "model": asdict(outcome.record.model)
            | {"device": outcome.device, "dtype": outcome.dtype},
            "prompt": _prompt(outcome),
            "text": outcome.text,
            "finish_reason": outcome.finish_reason,
            "narrative": outcome.narrative,
            "tokens": _tokens(outcome),
            **_assessment(outcome.assessment),
            "capture": _capture(outcome.record.capture),
            "timing": {
                "time_to_first_token": outcome.time_to_first_token,
                "tokens_per_second": outcome.tokens_per_second,
                "duration": outcome.duration,
                "capture": outcome.capture_seconds,
            },
            "trace_id": outcome.trace_id,
            "span_id": outcome.span_id,
            "destination": _destination(delivery),
        }
    )
    return report


def _prompt(outcome: Outcome) -> dict[str, Any]:
    prompt = outcome.record.prompt
    return {
        "text": outcome.prompt,
        "tokens": outcome.prompt_tokens,
        "chat_template": outcome.is_chat,
        "surprisal": {"mean": finite_mean(prompt.surprisal), "max": finite_max(prompt.surprisal)},
        "layer_transformation": finite_mean(prompt.layer_transformation),
        "basin": finite_mean(prompt.basin),
    }


def _tokens(outcome: Outcome) -> list[dict[str, Any]]:
    record, logits = outcome.record, outcome.record.logits
    unknown = [None] * record.steps
    columns = {
        name: getattr(logits, name).tolist() if logits is not None else unknown
        for name in _LOGIT_COLUMNS
    }
    return [
        {
            "step": step,
            "id": int(record.token_ids[step]),
            "text": outcome.token_texts[step],
            "seconds": (int(record.step_time_ns[step]) - record.start_time_ns) / 1e9,
            **{name: column[step] for name, column in columns.items()},
        }
        for step in range(record.steps)
    ]


def _assessment(assessment: Assessment | None) -> dict[str, Any]:
    if assessment is None:
        return dict.fromkeys(_NOT_ASSESSED)
    risk = assessment.risk
    return {
        "risk": {
            "score": risk.score,
            "level": risk.level.value,
            "source": risk.source.value,
            "calibration": risk.calibration,
            "heuristic": risk.heuristic,
            "factors": [asdict(factor) for factor in risk.factors],
        },
        "flags": asdict(assessment.flags),
        "loops": [asdict(loop) | {"repeats": loop.repeats} for loop in assessment.loops],
        "uncertainty": asdict(assessment.uncertainty),
        "signals": [asdict(signal) for signal in assessment.signals],
        "early_warning": asdict(assessment.early_warning),
        "blame": [asdict(layer) for layer in assessment.blame],
        "fingerprint": list(assessment.fingerprint),
        "consistency": [asdict(broken) for broken in assessment.consistency],
        "calibration": {
            "baseline": _divergence(assessment.divergence),
            "refused": assessment.calibration_refused,
        },
    }


def _divergence(divergence: Divergence | None) -> dict[str, Any] | None:
    if divergence is None:
        return None
    return {
        "id": divergence.baseline,
        "divergence": divergence.score,
        "anomalies": [asdict(anomaly) for anomaly in divergence.anomalies],
    }


def _capture(report: CaptureReport) -> dict[str, Any]:
    return asdict(report) | {"mode": report.mode.value}


def _destination(delivery: Delivery) -> dict[str, Any]:
    endpoints = delivery.destination.endpoints
    return {
        "kind": "otlp" if Signal.TRACES in endpoints else "file",
        "traces": delivery.destination.traces,
        "endpoints": {
            signal.value: {"url": endpoint.url, "protocol": endpoint.protocol.value}
            for signal, endpoint in endpoints.items()
        },
        "arrived": delivery.arrived,
        "error": delivery.error,
    }


def _without_unknown_numbers(value: Any) -> Any:
    """``value`` with ``null`` for NaN and infinities, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _without_unknown_numbers(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_unknown_numbers(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
