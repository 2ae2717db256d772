"""Generates with architectures of the zoo on the host, and on an accelerator that is pretended.

Writes what the spans of both say to a JSON file. An architecture that does not generate there by
itself has the reason instead.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.instrumentation import attributes, instrumented
from tests.models import GenerativeModel
from tests.pretended_devices import pretended_devices
from tests.providers import in_memory_telemetry
from tests.zoo.architectures import zoo
from tests.zoo.differential import quiet

SETTINGS: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6}


def tokens(model: GenerativeModel, inputs: Mapping[str, Tensor]) -> list[Any]:
    """What ``generate`` returns."""
    result: Any = model.generate(**inputs, **SETTINGS)
    sequences: Tensor = getattr(result, "sequences", result)
    return sequences.tolist()


def observed(
    model: GenerativeModel, inputs: Mapping[str, Tensor]
) -> tuple[list[Any], list[dict[str, Any]]]:
    """What ``generate`` returns under CoreVital, and what the spans say of it."""
    with in_memory_telemetry() as telemetry, instrumented(telemetry):
        returned = tokens(model, inputs)
        return returned, [attributes(span) for span in telemetry.spans()]


def compared(model: GenerativeModel, inputs: dict[str, Tensor], device: str) -> dict[str, Any]:
    """One model on the host, and then on ``device``."""
    if getattr(model.config.get_text_config(decoder=True), "_experts_implementation", None):
        # The others have kernels of their own, which nothing can pretend.
        model.set_experts_implementation("eager")
    _, said_on_host = observed(model, inputs)
    nn.Module.to(model, device)
    inputs = {name: tensor.to(device) for name, tensor in inputs.items()}
    try:
        plain = tokens(model, inputs)
    except Exception as error:
        return {"not_run": f"{type(error).__name__}: {error}"[:200]}
    try:
        returned, said = observed(model, inputs)
    except Exception as error:
        return {"raised": f"{type(error).__name__}: {error}"[:200]}
    return {"plain": plain, "observed": returned, "said": said, "said_on_host": said_on_host}


def main(results: str, *names: str) -> None:
    written = {}
    with pretended_devices() as (device, _), quiet(), torch.no_grad():
        for architecture in zoo():
            if str(architecture) in names:
                model, inputs = architecture.build(), architecture.inputs(batch=2)
                written[str(architecture)] = compared(model, inputs, device)
    Path(results).write_text(json.dumps(written))


if __name__ == "__main__":
    main(*sys.argv[1:])
