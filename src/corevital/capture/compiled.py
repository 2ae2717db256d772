"""Whether the application has compiled a model's forward pass."""

from __future__ import annotations

from torch import nn


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile`` was applied to a model in place or to its ``forward``.

    Inside a compiled forward pass there is nothing to observe: it is traced without the
    observation, so that it stays as fast as it was.
    """
    return (
        getattr(model, "_compiled_call_impl", None) is not None
        or getattr(model.forward, "_torchdynamo_orig_callable", None) is not None
    )
