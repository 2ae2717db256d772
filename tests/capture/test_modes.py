"""What each capture mode observes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from corevital.record import CaptureMode
from tests.capture.observe import observe
from tests.models import LAYERS, tiny_model, tiny_prompt
from tests.smollm2 import LoadedModel


def test_full_observes_every_layer_at_every_step() -> None:
    _, (record,) = observe(tiny_model("llama"), input_ids=tiny_prompt(), max_new_tokens=40)
    assert record.capture.mode is CaptureMode.FULL
    assert record.hidden is not None
    assert record.attention is not None
    assert record.hidden.layers.tolist() == record.attention.layers.tolist() == list(range(LAYERS))
    assert np.isfinite(record.hidden.l2_norm).all()
    assert np.isfinite(record.attention.entropy_mean).all()
    assert record.prompt.basin is not None


def test_summary_observes_logits_and_the_last_layer() -> None:
    model = tiny_model("llama")
    arguments = {"input_ids": tiny_prompt(), "max_new_tokens": 40, "min_new_tokens": 40}
    _, (full,) = observe(model, **arguments)
    _, (record,) = observe(model, {"capture": "summary"}, **arguments)
    assert record.hidden is not None
    assert record.attention is not None
    assert record.hidden.layers.tolist() == record.attention.layers.tolist() == [LAYERS - 1]
    assert full.hidden is not None
    assert full.attention is not None
    assert full.logits is not None
    assert record.logits is not None
    np.testing.assert_allclose(record.hidden.l2_norm, full.hidden.l2_norm[:, -1:], rtol=1e-5)
    np.testing.assert_allclose(
        record.attention.entropy_mean, full.attention.entropy_mean[:, -1:], rtol=1e-4
    )
    np.testing.assert_allclose(record.logits.entropy, full.logits.entropy, rtol=1e-5)
    assert record.capture.prompt.reason == "not part of this capture mode"


def test_a_summary_lets_go_of_the_states_of_other_layers() -> None:
    model = tiny_model("llama")
    first: list[StorageWeakRef] = []
    gone: list[bool] = []

    def after_first_layer(module: Any, args: Any, output: torch.Tensor) -> None:
        first.append(StorageWeakRef(output.untyped_storage()))

    def after_last_layer(module: Any, args: Any) -> None:
        gone.append(first[-1].expired())

    model.model.layers[0].register_forward_hook(after_first_layer)
    model.model.norm.register_forward_pre_hook(after_last_layer)
    arguments = {"input_ids": tiny_prompt(), "max_new_tokens": 4, "min_new_tokens": 4}
    observe(model, {"capture": "summary"}, **arguments)
    assert gone == [True] * 4


def test_off_observes_nothing() -> None:
    _, (record,) = observe(
        tiny_model("llama"), {"capture": "off"}, input_ids=tiny_prompt(), max_new_tokens=4
    )
    assert not record.observed
    assert record.steps == 4
    assert record.capture.logits.reason == "capture is off"


def test_on_risk_turns_to_everything_when_a_warning_appears(smollm2: LoadedModel) -> None:
    inputs = smollm2.tokenizer("la la la la la la la la", return_tensors="pt")
    arguments = {"do_sample": False, "max_new_tokens": 60, "min_new_tokens": 60}
    plain = smollm2.model.generate(**inputs, **arguments)
    # Below a cosine of 0.5 everything is a repetition: the warning comes as soon as it can.
    settings = {"capture": "on_risk", "repetition_cosine": 0.05}
    result, (record,) = observe(smollm2.model, settings, **inputs, **arguments)
    assert torch.equal(result, plain)
    start = record.capture.full_from_step
    assert start is not None
    assert 5 <= start <= 16
    assert record.hidden is not None
    assert record.attention is not None
    seen = np.isfinite(record.hidden.l2_norm)
    assert seen[:, -1].all()
    assert not seen[:start, :-1].any()
    assert seen[start:].all()
    assert np.isfinite(record.attention.entropy_mean)[start:].all()
    _, (full,) = observe(smollm2.model, **inputs, **arguments)
    assert full.attention is not None
    np.testing.assert_allclose(
        record.attention.entropy_mean[start:], full.attention.entropy_mean[start:], rtol=1e-3
    )


def test_on_risk_stays_a_summary_without_a_warning(smollm2: LoadedModel) -> None:
    inputs = smollm2.chat("What is the capital of France?")
    _, (record,) = observe(
        smollm2.model, {"capture": "on_risk"}, **inputs, do_sample=False, max_new_tokens=30
    )
    assert record.capture.full_from_step is None
    assert record.hidden is not None
    assert record.hidden.layers.tolist() == [29]


@pytest.mark.parametrize("mode", ["full", "summary", "on_risk", "off"])
def test_no_mode_changes_a_token(mode: str) -> None:
    model = tiny_model("llama")
    torch.manual_seed(1)
    plain = model.generate(tiny_prompt(batch=2), do_sample=True, max_new_tokens=30)
    torch.manual_seed(1)
    result, _ = observe(
        model, {"capture": mode}, inputs=tiny_prompt(batch=2), do_sample=True, max_new_tokens=30
    )
    assert torch.equal(result, plain)
