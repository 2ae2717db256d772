"""A model whose weights wait on the host or on disk until they are needed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from transformers import AutoModelForCausalLM

from tests.instrumentation import TIMES, attributes, instrumented
from tests.models import LAYERS, GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry


def load(folder: Path, **arguments: Any) -> GenerativeModel:
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model", **arguments)
    return cast(GenerativeModel, model)


def on_the_host(folder: Path) -> GenerativeModel:
    model = load(folder)
    cpu_offload(model, execution_device=torch.device("cpu"))
    return model


def on_disk(folder: Path) -> GenerativeModel:
    model = load(folder)
    disk_offload(model, str(folder / "offloaded"), execution_device=torch.device("cpu"))
    return model


def by_a_device_map(folder: Path) -> GenerativeModel:
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm"]
    layers = {f"model.layers.{at}": "disk" if at % 2 else "cpu" for at in range(LAYERS)}
    return load(
        folder,
        device_map=dict.fromkeys(parts, "cpu") | layers | {"lm_head": "disk"},
        offload_folder=folder / "offloaded",
    )


def generate(model: GenerativeModel) -> Any:
    return model.generate(
        tiny_prompt(2),
        do_sample=False,
        max_new_tokens=8,
        pad_token_id=0,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
    )


# Before 5.0, a model was where its weights are.
@pytest.mark.filterwarnings("ignore:You are calling .generate:UserWarning")
@pytest.mark.parametrize("offloaded", [on_the_host, on_disk, by_a_device_map])
def test_it_generates_the_same_and_shows_what_a_whole_one_shows(
    offloaded: Callable[[Path], GenerativeModel], tmp_path: Path, telemetry: Telemetry
) -> None:
    tiny_model("llama", tie_word_embeddings=False).save_pretrained(tmp_path / "model")
    whole, model = load(tmp_path), offloaded(tmp_path)
    assert any(parameter.is_meta for parameter in model.parameters())
    plain = generate(model)

    with instrumented(telemetry):
        observed = generate(model)
        generate(whole)

    assert torch.equal(observed.sequences, plain.sequences)
    assert all(map(torch.equal, observed.logits, plain.logits))
    spans = [attributes(span) for span in telemetry.spans()]
    of_offloaded, of_whole = spans[: len(spans) // 2], spans[len(spans) // 2 :]
    for written, expected in zip(of_offloaded, of_whole, strict=True):
        assert written["corevital.capture.prompt"] == "captured"
        assert set(written) == set(expected)
        for name in set(written) - TIMES:
            value, value_expected = written[name], expected[name]
            # An offloaded head is called, where the product with one that is here is cut up.
            rounded = pytest.approx(value_expected) if isinstance(value, float) else value_expected
            assert value == rounded, name
