"""Every way of decoding reaches the spans, one for each returned sequence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from opentelemetry.sdk.trace import ReadableSpan

from corevital import Observed
from tests.instrumentation import (
    attributes,
    counted,
    events,
    identity,
    instrumented,
    parent_identity,
)
from tests.models import tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.smollm2 import LoadedModel

TOKENS = 6
SIGNALS = ("logits", "hidden", "attention")


def decoding_loop(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
    for _step in range(TOKENS):
        newest = model(input_ids).logits[:, -1:].argmax(-1)
        input_ids = torch.cat((input_ids, newest), dim=-1)
    return input_ids


DECODINGS: dict[str, tuple[int, dict[str, Any]]] = {
    "beam search": (4, {"num_beams": 3, "num_return_sequences": 2}),
    "beam sampling": (2, {"num_beams": 2, "do_sample": True}),
    "guidance": (2, {"guidance_scale": 1.5}),
    "chunked prefill": (2, {"prefill_chunk_size": 5}),
    "custom loop": (2, {"custom_generate": decoding_loop}),
}


def sequence_spans(telemetry: Telemetry) -> Iterator[ReadableSpan]:
    spans = telemetry.spans()
    (call,) = [span for span in spans if span.parent is None]
    for span in spans:
        if span is not call:
            assert parent_identity(span) == identity(call)
            yield span


@pytest.mark.parametrize("decoding", DECODINGS)
def test_each_returned_sequence_has_a_span(decoding: str, telemetry: Telemetry) -> None:
    sequences, options = DECODINGS[decoding]
    model = tiny_model("llama")
    arguments = {"max_new_tokens": TOKENS, "eos_token_id": 127} | options
    torch.manual_seed(5)
    plain = model.generate(tiny_prompt(batch=2), **arguments)
    torch.manual_seed(5)
    with instrumented(telemetry):
        result = model.generate(tiny_prompt(batch=2), **arguments)

    assert torch.equal(result, plain)
    children = list(sequence_spans(telemetry))
    assert len(children) == sequences == len(result)
    for child, generated in zip(children, result[:, 12:].tolist(), strict=True):
        written = attributes(child)
        assert [written[f"corevital.capture.{name}"] for name in SIGNALS] == ["captured"] * 3
        steps = [attributes(event) for event in events(child, "corevital.step")]
        assert [step["corevital.step.token.id"] for step in steps] == generated
        total = sum(step["corevital.step.surprisal"] for step in steps)
        assert written["corevital.surprisal.mean"] * TOKENS == pytest.approx(total, rel=1e-4)
        assert 0.0 <= written["corevital.risk.score"] <= 1.0
    (call,) = [span for span in telemetry.spans() if span.parent is None]
    assert attributes(call)["gen_ai.usage.output_tokens"] == sequences * TOKENS
    assert attributes(call)["gen_ai.usage.input_tokens"] == 2 * 12
    assert counted(telemetry, "corevital.capture.failure.count") == 0


def test_a_real_model_that_drafts_for_itself_is_one_span(
    smollm2: LoadedModel, telemetry: Telemetry
) -> None:
    inputs = smollm2.chat("Name three rivers in Europe.")
    arguments = {"do_sample": False, "max_new_tokens": 8}
    drafting = arguments | {"assistant_early_exit": 28}
    plain = smollm2.model.generate(**inputs, **drafting)
    observed: list[Observed] = []
    with instrumented(telemetry, on_generation=observed.append):
        result = smollm2.model.generate(**inputs, **drafting)
        smollm2.model.generate(**inputs, **arguments)

    assert torch.equal(result, plain)
    assisted, alone = (each.record for each in observed)
    assert len(telemetry.spans()) == 2
    assert assisted.token_ids.tolist() == alone.token_ids.tolist()
    assert len(set(assisted.step_time_ns.tolist())) <= assisted.steps
    for part, names in {
        "logits": ("entropy", "surprisal", "margin", "top_k_mass"),
        "hidden": ("l2_norm", "last_layer_cosine"),
        "attention": ("entropy_mean", "concentration_max"),
        "prompt": ("surprisal", "basin"),
    }.items():
        for name in names:
            found = getattr(getattr(assisted, part), name)
            expected = getattr(getattr(alone, part), name)
            assert found == pytest.approx(expected, rel=2e-3, abs=2e-3, nan_ok=True)
