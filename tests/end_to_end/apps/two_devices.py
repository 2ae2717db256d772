"""Generates with models on one device, and with each divided between two that are pretended.

Writes what the spans of both say to a JSON file.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import dispatch_model
from torch import Tensor, nn

from tests.instrumentation import attributes, instrumented
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.pretended_devices import pretended_devices
from tests.providers import in_memory_telemetry

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "gemma2": {},
    "gpt_oss": {"experts_implementation": "eager"},
    "t5": {},
}
WAYS: dict[str, dict[str, Any]] = {
    "alone": {},
    "padded batch": {"padded": True},
    "beams": {"padded": True, "num_beams": 3},
    "inputs on the host": {"padded": True, "on_host": True},
    "answers": {"padded": True, "do_sample": True, "num_return_sequences": 2},
}
SETTINGS = {"do_sample": False, "max_new_tokens": 8, "min_new_tokens": 8, "pad_token_id": 0}


def prompt(*, padded: bool) -> dict[str, Tensor]:
    ids = tiny_prompt(2 if padded else 1)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :3] = 0
    return {"input_ids": ids, "attention_mask": mask}


def divided(model: GenerativeModel, first: str, second: str) -> GenerativeModel:
    """The model with half of its layers, and what follows them, on the second device."""
    places: dict[str, str] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1 and name.count(".") <= 2:
            half = len(module) // 2
            places |= {f"{name}.{at}": second if at >= half else first for at in range(len(module))}
    layers = tuple(f"{name}." for name in places)
    late = ("norm", "lm_head", "ln_f")
    weights = (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    shared: dict[int, str] = {}
    for name, weight in weights:
        if not name.startswith(layers):
            module_name = name.rpartition(".")[0]
            place = second if module_name.endswith(late) else first
            places[module_name] = shared.setdefault(id(weight), place)
    dispatched: Any = dispatch_model(model, places, main_device=first, force_hooks=True)
    return cast(GenerativeModel, dispatched)


def generated(model: GenerativeModel, device: str, way: dict[str, Any]) -> dict[str, Any]:
    """The tokens without CoreVital and with it, and what the spans and their events say."""
    options = {**SETTINGS, **way}
    inputs = prompt(padded=options.pop("padded", False))
    if not options.pop("on_host", False):
        inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    torch.manual_seed(0)
    plain = model.generate(**inputs, **options)
    torch.manual_seed(0)
    with in_memory_telemetry() as telemetry, instrumented(telemetry):
        observed = model.generate(**inputs, **options)
        spans = telemetry.spans()
    return {
        "plain": plain.tolist(),
        "observed": observed.tolist(),
        "said": [
            [attributes(span), *(attributes(event) for event in span.events)] for span in spans
        ],
    }


def main(results: str) -> None:
    written: dict[str, Any] = {}
    with pretended_devices() as (first, second):
        for family, options in FAMILIES.items():
            model = tiny_model(family, tie_word_embeddings=False, **options)
            on_one = {way: generated(model, "cpu", each) for way, each in WAYS.items()}
            model = divided(model, first, second)
            on_two = {way: generated(model, first, each) for way, each in WAYS.items()}
            written |= {f"{family}, {way}": [on_one[way], on_two[way]] for way in WAYS}
    Path(results).write_text(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
