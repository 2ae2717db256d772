"""Made-up runs of one model: alike, but each with a level of its own, as real runs are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from corevital.calibration.baseline import Baseline
from corevital.calibration.build import summarize
from corevital.calibration.divergence import Reference
from corevital.calibration.identity import ModelIdentity
from corevital.calibration.quantities import run_of
from corevital.calibration.schema import Capture, Conditions
from corevital.record import CaptureMode, Floats, GenerationRecord, ModelDescription
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record

CONDITIONS = Conditions(
    prompts="sha256:0", chat_template=True, max_new_tokens=24, device="cpu", dtype="float32"
)
CAPTURE = Capture(mode=CaptureMode.FULL, top_k=10)
MODEL = ModelDescription("org/model", "llama", "LlamaForCausalLM", 4, 32, 128)
HEADS = 8


def healthy_record(seed: int, steps: int = 24, layers: int = 4) -> GenerationRecord:
    """A run whose level differs from that of others more than its steps from each other."""
    random = np.random.default_rng(seed)

    def column(level: float, *shape: int) -> Floats:
        own = level * random.lognormal(sigma=0.3)
        return (own * random.lognormal(sigma=0.2, size=(steps, *shape))).astype(np.float32)

    norms = np.column_stack([column(10.0 * (layer + 1)) for layer in range(layers)])
    attention = attention_columns(random.binomial(HEADS, 0.1, (steps, layers)), heads=HEADS)
    return replace(
        record(
            logits=logit_columns(
                entropy=column(1.5),
                surprisal=column(1.0),
                margin=np.minimum(column(0.4), 1.0),
                top_k_mass=np.ones(steps),
            ),
            hidden=hidden_columns(norms),
            attention=replace(attention, normalized_entropy_mean=column(0.3, layers)),
        ),
        model=MODEL,
    )


def with_norms(made: GenerationRecord, layer: int, factor: float) -> GenerationRecord:
    """The run with the L2 norms of one layer multiplied."""
    assert made.hidden is not None
    norms = made.hidden.l2_norm.copy()
    norms[:, layer] *= factor
    return replace(made, hidden=replace(made.hidden, l2_norm=norms))


def with_logits(made: GenerationRecord, **columns: Any) -> GenerationRecord:
    """The run with other logit columns."""
    assert made.logits is not None
    return replace(made, logits=replace(made.logits, **columns))


def baseline_of(records: list[GenerationRecord], **changes: Any) -> Baseline:
    """A baseline of ``records``; ``changes`` replace fields."""
    runs = [run_of(made) for made in records]
    common = summarize(runs)
    fields: dict[str, Any] = {
        "model": ModelIdentity.of(MODEL),
        "conditions": CONDITIONS,
        "capture": CAPTURE,
        "created": "2026-01-01T00:00:00+00:00",
        "created_with": {"corevital": "0.1.0"},
        "runs": len(runs),
        "steps": sum(run.steps for run in runs),
        "left_out": {},
        "lengths": common.lengths,
        "limits": common.limits,
        "distributions": common.distributions,
    }
    return Baseline(**(fields | changes))


def healthy_baseline(runs: int = 40, steps: int = 24) -> Baseline:
    """A baseline of runs with the seeds from 0 on."""
    return baseline_of([healthy_record(seed, steps) for seed in range(runs)])


def reference(runs: int = 40, steps: int = 24) -> Reference:
    """That baseline, ready to be compared with."""
    return Reference(healthy_baseline(runs, steps), "model@0")
