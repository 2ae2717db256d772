"""What is sent of an encoder-decoder, from a real generation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from corevital import GenerationRecord, Observed
from tests.instrumentation import attributes, counted, events
from tests.models import LAYERS, tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument

TOKENS = 5
SETTINGS: dict[str, Any] = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}


@pytest.fixture
def records(instrument: Instrument) -> list[GenerationRecord]:
    """Instrumented; fills with what is generated."""
    kept: list[GenerationRecord] = []

    def keep(observed: Observed) -> None:
        kept.append(observed.record)

    instrument(on_generation=keep)
    return kept


def test_the_span_says_what_the_encoder_and_cross_attention_showed(
    telemetry: Telemetry, records: list[GenerationRecord]
) -> None:
    tiny_model("bart").generate(tiny_prompt(), **SETTINGS)
    (span,), (record,) = telemetry.spans(), records
    found = attributes(span)
    for signal in ("logits", "hidden", "attention", "cross_attention", "prompt"):
        assert found[f"corevital.capture.{signal}"] == "captured"
    assert found["corevital.capture.encoder.hidden"] == "captured"
    assert found["corevital.capture.encoder.attention"] == "captured"
    assert found["gen_ai.usage.input_tokens"] == 12
    assert found["gen_ai.usage.output_tokens"] == TOKENS
    assert record.cross_attention is not None
    assert record.encoder is not None
    assert record.encoder.hidden is not None
    assert record.encoder.attention is not None
    for name, value in (
        ("cross_attention.entropy.mean", record.cross_attention.entropy_mean),
        ("cross_attention.normalized_entropy.mean", record.cross_attention.normalized_entropy_mean),
        ("encoder.hidden.l2_norm.mean", record.encoder.hidden.l2_norm),
        ("encoder.attention.entropy.mean", record.encoder.attention.entropy_mean),
    ):
        assert found[f"corevital.{name}"] == pytest.approx(float(value.mean()), rel=1e-5)
    assert "corevital.encoder.non_finite_layers" not in found
    assert "corevital.prompt.surprisal.mean" not in found
    assert found["corevital.prompt.basin.mean"] > 0
    assert found["corevital.consistency.violations"] == ()


def test_events_have_cross_attention_by_step_and_layer_and_the_encoder_by_layer(
    telemetry: Telemetry, records: list[GenerationRecord]
) -> None:
    tiny_model("bart").generate(tiny_prompt(), **SETTINGS)
    (span,), (record,) = telemetry.spans(), records
    cross, encoder = record.cross_attention, record.encoder
    assert cross is not None
    assert encoder is not None
    assert encoder.hidden is not None
    steps = [attributes(event) for event in events(span, "corevital.step")]
    entropy = [step["corevital.step.cross_attention.entropy.mean"] for step in steps]
    np.testing.assert_allclose(entropy, cross.entropy_mean.mean(axis=1), rtol=1e-5)
    (layers,) = (attributes(event) for event in events(span, "corevital.layers"))
    assert layers["corevital.layer.cross_attention.index"] == tuple(range(LAYERS))
    np.testing.assert_allclose(
        layers["corevital.layer.cross_attention.entropy.mean"],
        cross.entropy_mean.mean(axis=0),
        rtol=1e-5,
    )
    (prompt,) = (attributes(event) for event in events(span, "corevital.prompt"))
    assert prompt["corevital.layer.index"] == tuple(range(LAYERS))
    np.testing.assert_allclose(
        prompt["corevital.encoder.hidden.l2_norm.values"], encoder.hidden.l2_norm, rtol=1e-6
    )


def test_speech_is_counted_in_the_positions_that_the_decoder_attends_to(
    telemetry: Telemetry, records: list[GenerationRecord]
) -> None:
    features = torch.randn(1, 8, 40, generator=torch.Generator().manual_seed(0))
    tiny_model("whisper").generate(input_features=features, **SETTINGS)
    (span,) = telemetry.spans()
    found = attributes(span)
    assert found["gen_ai.usage.input_tokens"] == 20
    assert "corevital.prompt.hash" not in found
    assert found["corevital.capture.cross_attention"] == "captured"
    assert counted(telemetry, "corevital.capture.failure.count") == 0


def test_nan_in_the_encoder_is_named_by_layer(
    telemetry: Telemetry, records: list[GenerationRecord]
) -> None:
    model: Any = tiny_model("bart")
    with torch.no_grad():
        model.get_encoder().layers[2].fc2.bias.fill_(float("nan"))
    model.generate(tiny_prompt(), **SETTINGS)
    (span,) = telemetry.spans()
    found = attributes(span)
    assert found["corevital.encoder.non_finite_layers"] == (2, 3)
    assert found["corevital.health.nan_or_inf"] is True


def test_a_short_prompt_event_without_prompt_telemetry_has_the_encoder_only(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument(prompt=False)
    tiny_model("bart").generate(tiny_prompt(), **SETTINGS)
    (span,) = telemetry.spans()
    (prompt,) = (attributes(event) for event in events(span, "corevital.prompt"))
    assert set(prompt) == {"corevital.layer.index", "corevital.encoder.hidden.l2_norm.values"}
    assert len(prompt["corevital.layer.index"]) == LAYERS
