"""Outcomes of runs made by hand, for the reports to show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from corevital.assess.assessment import Assessment, assess
from corevital.assess.profile import DEFAULT_PROFILE
from corevital.cli.destination import Destination, Endpoint, Protocol, Signal
from corevital.cli.export import Delivery
from corevital.cli.outcome import Outcome
from corevital.record import GenerationRecord
from tests.assess.records import logit_columns, record

SECOND = 10**9

TO_FILE = Destination({}, Path("traces.jsonl"))
TO_COLLECTOR = Destination(
    dict.fromkeys(Signal, Endpoint("http://collector:4317", Protocol.GRPC)), Path("unused")
)
ARRIVED = Delivery(TO_FILE, None)


def calm_record(steps: int = 4) -> GenerationRecord:
    """A run that was sure of every token and took a second for each."""
    made = record(
        logits=logit_columns(
            entropy=[0.5] * steps,
            surprisal=[0.25] * steps,
            margin=[0.75] * steps,
            top_k_mass=[1.0] * steps,
        )
    )
    return replace(
        made,
        step_time_ns=np.arange(1, steps + 1, dtype=np.int64) * SECOND,
        end_time_ns=(steps + 1) * SECOND,
        finish_reason="length",
    )


def outcome(
    made: GenerationRecord | None = None, assessment: Assessment | None = None, **changes: Any
) -> Outcome:
    """An outcome of ``made``, assessed unless it was not observed; ``changes`` replace fields."""
    shown = calm_record() if made is None else made
    if assessment is None and shown.observed:
        assessment = assess(shown, DEFAULT_PROFILE)
    plain = Outcome(
        record=shown,
        assessment=assessment,
        trace_id="0af7651916cd43dd8448eb211c80319c",
        span_id="b7ad6b7169203331",
        prompt="Once",
        prompt_tokens=3,
        is_chat=False,
        text="upon a time",
        token_texts=tuple(f" word{number}" for number in range(shown.steps)),
        device="cpu",
        dtype="float32",
        high_entropy_bits=DEFAULT_PROFILE.high_entropy_bits,
        capture_seconds=0.25,
    )
    return replace(plain, **changes)
