"""What a call of ``generate`` asks for: its settings, and whether its decoding can be observed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from torch import Tensor, nn
from transformers import GenerationMixin

from corevital.capture.layers import decoder_size, is_encoder_decoder
from corevital.capture.own_generate import decodes_with_library_loop


@dataclass(frozen=True, slots=True)
class GenerateCall:
    """The arguments of one call of ``generate``, as the call resolves them.

    A keyword argument overrides the generation config that is passed, which overrides the
    model's own.
    """

    model: nn.Module
    arguments: dict[str, Any]
    own: bool = field(default=False, kw_only=True)
    """Whether the model's own ``generate`` was called, which does not end in another."""

    @property
    def codebooks(self) -> int | None:
        """How many tokens the model's own ``generate`` chooses at each step of one sequence.

        ``None`` where that is not known, and for all other calls.
        """
        names = ("num_codebooks", "num_channels") if self.own else ()
        return next((size for name in names if (size := decoder_size(self.model, name))), None)

    @property
    def is_guided(self) -> bool:
        """Whether classifier-free guidance is asked for, which doubles the rows of such a call."""
        return (self.setting("guidance_scale") or 1) > 1

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

    @property
    def prompt_length(self) -> int | None:
        """Positions of the prompt, padding included; ``None`` when it is not given as tokens."""
        ids = self._given_ids()
        if ids is None or self.arguments.get("inputs_embeds") is not None:
            return None
        return ids.shape[1]

    def _given_ids(self) -> Tensor | None:
        ids = self.arguments.get("inputs")
        if ids is None:
            ids = self.arguments.get("input_ids")
        tokens = isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point()
        if self.codebooks is not None and not is_encoder_decoder(self.model):
            # They are codes of audio.
            return None
        return ids if tokens else None

    def prompt_ids(self) -> list[list[int]]:
        """Token ids of every prompt, padding removed; none when the prompt is given otherwise."""
        ids = self._given_ids()
        if ids is None:
            return []
        mask = self.arguments.get("attention_mask")
        if not isinstance(mask, Tensor) or mask.shape != ids.shape:
            return ids.tolist()
        # One wait for each tensor that is on an accelerator, not some for each row.
        rows = zip(ids.cpu(), mask.bool().cpu(), strict=True)
        return [row[seen].tolist() for row, seen in rows]

    @property
    def end_tokens(self) -> frozenset[int]:
        """Token ids that end a sequence."""
        value = self.setting("eos_token_id")
        if isinstance(value, Tensor):
            value = value.tolist()
        if value is None:
            return frozenset()
        return frozenset(value if isinstance(value, list | tuple | set) else [value])


class Decoding(StrEnum):
    """How a call chooses its tokens."""

    STEPS = "steps"
    BEAMS = "beams"
    ASSISTED = "assisted"
    CUSTOM = "custom"


def decoding_of(call: GenerateCall) -> Decoding:
    """How ``generate`` decodes with these settings."""
    if call.arguments.get("custom_generate") is not None:
        return Decoding.CUSTOM
    if (call.setting("num_beams") or 1) > 1:
        # With more than one beam an assistant is ignored.
        return Decoding.BEAMS
    return Decoding.ASSISTED if _is_assisted(call) else Decoding.STEPS


def unobservable_decoding(call: GenerateCall) -> str | None:
    """Why the steps of this call cannot be tied to its tokens; ``None`` where they may be."""
    if call.setting("cache_implementation") == "paged":
        return "continuous batching"
    decoding = decoding_of(call)
    if call.own and (decoding is not Decoding.STEPS or not _calls_library_loop(call)):
        return "the model's own generate"
    if decoding is Decoding.CUSTOM:
        return _compiled_forward(call)
    if call.setting("constraints") or call.setting("force_words_ids"):
        return "constrained beam search"
    if (call.setting("num_beam_groups") or 1) > 1:
        return "group beam search"
    if call.setting("penalty_alpha") or call.setting("dola_layers"):
        return "contrastive decoding"
    if is_encoder_decoder(call.model):
        if decoding is Decoding.ASSISTED and not _assists_as_the_library(type(call.model)):
            return "assisted decoding of the model's own"
    elif call.prompt_length is None:
        if decoding is Decoding.ASSISTED:
            return "assisted decoding of a prompt that was not given as tokens"
        if call.setting("prefill_chunk_size"):
            return "chunked prefill of a prompt that was not given as tokens"
    if not is_list(call.arguments.get("stopping_criteria")):
        return "stopping criteria that are not a list"
    if decoding is Decoding.BEAMS and not is_list(call.arguments.get("logits_processor")):
        return "logits processors that are not a list"
    return _compiled_forward(call)


def _calls_library_loop(call: GenerateCall) -> bool:
    """Whether a ``generate`` of the model's own has its tokens chosen as all others have.

    Of such a one it is known besides what its rows are, if each is a codebook.
    """
    return call.codebooks is not None and decodes_with_library_loop(type(call.model))


def _assists_as_the_library(model_class: type) -> bool:
    """Whether it shows with which tokens the decoder begins."""
    own = getattr(model_class, "_assisted_decoding", None)
    return own is GenerationMixin._assisted_decoding


def is_list(given: Any) -> bool:
    """Whether criteria or processors are none, or a collection that can be copied unharmed."""
    return given is None or isinstance(given, list | tuple | set | frozenset | deque)


def _is_assisted(call: GenerateCall) -> bool:
    if call.arguments.get("assistant_model") is not None or call.setting("use_mtp"):
        return True
    names = ("prompt_lookup_num_tokens", "assistant_early_exit")
    return any(call.setting(name) is not None for name in names)


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
