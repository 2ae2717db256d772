"""A real model under the application's autocast: the same tokens, and nothing missing."""

from __future__ import annotations

import numpy as np
import torch

from corevital import Observed
from tests.instrumentation import attributes, counted, events, instrumented
from tests.providers import Telemetry
from tests.smollm2 import LoadedModel

TOKENS = 40
SIGNALS = ("logits", "hidden", "attention", "prompt")


def test_nothing_is_missing_under_autocast(smollm2: LoadedModel, telemetry: Telemetry) -> None:
    inputs = smollm2.chat("Name three rivers in Europe.")
    arguments = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS}
    observed: list[Observed] = []

    with torch.autocast("cpu", torch.bfloat16):
        plain = smollm2.model.generate(**inputs, **arguments)
        with instrumented(telemetry, on_generation=observed.append):
            result = smollm2.model.generate(**inputs, **arguments)

    assert torch.equal(result, plain)
    (span,) = telemetry.spans()
    written = attributes(span)
    assert [written[f"corevital.capture.{signal}"] for signal in SIGNALS] == ["captured"] * 4
    assert counted(telemetry, "corevital.capture.failure.count") == 0
    assert len(events(span, "corevital.step")) == TOKENS
    assert np.isfinite(
        [written["corevital.prompt.surprisal.mean"], written["corevital.uncertainty.rauq"]]
    ).all()
    assert written["corevital.health.nan_or_inf"] is False

    (record,) = [each.record for each in observed]
    assert record.logits is not None
    assert record.hidden is not None
    assert record.attention is not None
    layers = smollm2.model.config.num_hidden_layers
    assert record.logits.entropy.shape == (TOKENS,)
    assert record.hidden.l2_norm.shape == (TOKENS, layers)
    assert record.attention.entropy_mean.shape == (TOKENS, layers)
    assert record.attention.previous_token_weight is not None
    for column in (
        record.logits.entropy,
        record.hidden.l2_norm,
        record.attention.entropy_mean,
        record.attention.previous_token_weight.values,
    ):
        assert np.isfinite(column).all()
    assert record.prompt.surprisal is not None
    assert record.prompt.surprisal.shape == (inputs["input_ids"].shape[1] - 1,)
    assert record.prompt.basin is not None
    assert record.prompt.layer_transformation is not None
    assert record.prompt.sparse is not None
