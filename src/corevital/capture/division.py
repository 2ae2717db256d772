"""How a model is divided among processes, each of which generates the same."""

from __future__ import annotations

from typing import Any

import torch.distributed
from torch import Tensor, nn


def processes() -> int:
    """How many processes there are that may wait for each other."""
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return 1
    return distributed.get_world_size()


def pipeline_stages(model: nn.Module) -> int:
    """Among how many processes the layers of a model are divided, some whole ones for each."""
    stages: int = getattr(getattr(model, "_pp_stage", None), "pp_size", 1)
    return stages


def is_shard(value: Any) -> bool:
    """Whether a value is a ``DTensor``, with which any operation may wait for other processes."""
    return isinstance(value, Tensor) and hasattr(value, "device_mesh")


def is_divided(model: nn.Module) -> bool:
    """Whether parts of a model are in other processes, to which this one has to keep up.

    So it is with tensor and pipeline parallelism, and with fully sharded parameters.
    """
    if processes() == 1:
        return False
    return (
        (getattr(model, "_tp_size", None) or 1) > 1
        or pipeline_stages(model) > 1
        or any(is_shard(parameter) for parameter in model.parameters())
    )
