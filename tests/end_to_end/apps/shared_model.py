"""One process of several that share a model: generates plain, then with CoreVital in some of them.

Writes what it got, and what its spans say, to a JSON file of its rank.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed
from transformers import AutoModelForCausalLM

import corevital
from tests.forcing import forcing
from tests.instrumentation import attributes, events, instrumented
from tests.models import GenerativeModel, tiny_prompt
from tests.providers import in_memory_telemetry

TOKENS = 8
# With random weights a loop counts from 192 tokens on.
LOOP = [40, 41, 42] * 70


def load(folder: str, sharing: str) -> GenerativeModel:
    """The model, or this process's part of it."""
    processes = torch.distributed.get_world_size()
    if sharing == "tensors":
        return load_part(folder, tp_plan="auto")
    if sharing == "layers":
        from transformers.distributed.configuration_utils import DistributedConfig

        return load_part(folder, distributed_config=DistributedConfig(pp_size=processes))
    from torch.distributed.fsdp import fully_shard

    model = load_part(folder)
    for module in (*model.model.layers, model.lm_head, model):
        fully_shard(module, reshard_after_forward=True)
    return model


def load_part(folder: str, **arguments: Any) -> GenerativeModel:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, **arguments)
    return cast(GenerativeModel, model.eval())


def generated(
    model: GenerativeModel,
    *,
    observed: bool = False,
    stop_on: str | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """What the model generates, and what is sent about it."""
    prompt = tiny_prompt(2)
    with in_memory_telemetry() as telemetry:
        settings = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        with ExitStack() as stack:
            if observed:
                stack.enter_context(instrumented(telemetry))
                if stop_on is not None:
                    stack.enter_context(corevital.intervene(on=stop_on))
            tokens = model.generate(prompt, **settings, **arguments)
        spans = telemetry.spans()
        return {
            "tokens": tokens.tolist(),
            "spans": [attributes(span) for span in spans],
            "steps": [
                [attributes(each) for each in events(span, "corevital.step")] for span in spans
            ],
        }


def main(folder: str, sharing: str, results: str) -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    model = load(folder, sharing)
    # Where parameters are gathered for each forward pass, all processes go on until all have ended.
    together: dict[str, Any] = {"synced_gpus": True} if sharing == "parameters" else {}
    few: dict[str, Any] = {"max_new_tokens": TOKENS, **together}
    written = {
        "plain": generated(model, **few),
        "observed in one": generated(model, **few, observed=rank == 0),
        "observed in all": generated(model, **few, observed=True),
    }
    loop: dict[str, Any] = {"max_new_tokens": len(LOOP), **together}
    written["loop"] = generated(model, **loop, logits_processor=forcing(LOOP))
    written["loop to be stopped in one"] = generated(
        model, **loop, logits_processor=forcing(LOOP), observed=rank == 0, stop_on="repetition"
    )
    Path(results, f"{rank}.json").write_text(json.dumps(written))
    # None takes its connections down while another is still at it.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
