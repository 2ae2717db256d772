"""What a call of ``generate`` asks for: its settings, and whether its decoding can be observed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """The arguments of one call of ``generate``, as the call resolves them.

    A keyword argument overrides the generation config that is passed, which overrides the
    model's own.
    """

    model: nn.Module
    arguments: dict[str, Any]

    def setting(self, name: str) -> Any:
        """The value of one generation setting, ``None`` when it is set nowhere."""
        configs = (
            self.arguments.get("generation_config"),
            getattr(self.model, "generation_config", None),
        )
        value = self.arguments.get(name)
        for config in configs:
            if value is None:
                value = getattr(config, name, None)
        return value

    def prompt_ids(self) -> list[list[int]]:
        """Token ids of every prompt, padding removed; none when the prompt is given otherwise."""
        ids = self.arguments.get("inputs")
        if ids is None:
            ids = self.arguments.get("input_ids")
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            return []
        mask = self.arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            return ids.tolist()
        return [
            row[seen.bool()].tolist() for row, seen in zip(ids, mask.to(ids.device), strict=True)
        ]

    @property
    def end_tokens(self) -> frozenset[int]:
        """Token ids that end a sequence."""
        value = self.setting("eos_token_id")
        if isinstance(value, Tensor):
            value = value.tolist()
        if value is None:
            return frozenset()
        return frozenset(value if isinstance(value, list | tuple | set) else [value])


def unobservable_decoding(call: GenerateCall) -> str | None:
    """Why the steps of this call cannot be tied to its tokens; ``None`` for greedy and sampling."""
    config = getattr(call.model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        return "encoder-decoder model"
    if call.arguments.get("custom_generate") is not None:
        return "custom generate"
    if (call.setting("num_beams") or 1) > 1 or call.setting("constraints"):
        return "beam search"
    if _is_assisted(call):
        return "assisted decoding"
    if call.setting("cache_implementation") == "paged":
        return "continuous batching"
    if call.setting("penalty_alpha") or call.setting("dola_layers"):
        return "contrastive decoding"
    if call.setting("guidance_scale") not in (None, 1, 1.0):
        return "classifier-free guidance"
    if call.setting("prefill_chunk_size"):
        return "chunked prefill"
    if not isinstance(call.arguments.get("stopping_criteria"), list | None):
        return "stopping criteria that are not a list"
    return _compiled_forward(call)


def _is_assisted(call: GenerateCall) -> bool:
    names = ("prompt_lookup_num_tokens", "assistant_early_exit", "use_mtp")
    return call.arguments.get("assistant_model") is not None or any(
        call.setting(name) for name in names
    )


def _compiled_forward(call: GenerateCall) -> str | None:
    """``generate`` compiles the forward itself for fixed-size caches on an accelerator."""
    device = getattr(call.model, "device", None)
    on_accelerator = device is not None and device.type not in ("cpu", "mps")
    cache = call.setting("cache_implementation")
    given = call.arguments.get("past_key_values")
    compileable = cache in ("static", "offloaded_static", "sliding_window", "hybrid") or bool(
        getattr(given, "is_compileable", False)
    )
    if on_accelerator and compileable and not call.setting("disable_compile"):
        return "forward compiled for a static cache"
    return None
