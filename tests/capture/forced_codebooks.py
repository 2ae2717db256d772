"""The columns of a record of one codebook, computed again from one forward pass over all."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

from tests.capture.forced_encoder_decoder import Forced
from tests.models import GenerativeModel


class LoopRows(StoppingCriteria):
    """Keeps the newest rows of the loop over tokens, which ``generate`` does not return."""

    def __init__(self) -> None:
        self.newest: Tensor | None = None

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        self.newest = input_ids.clone()
        return torch.zeros(len(input_ids), dtype=torch.bool)


def forced_outputs(model: GenerativeModel, inputs: dict[str, Tensor], given: Tensor) -> Any:
    """What an eager model shows when its decoder is given so many codes."""
    with torch.no_grad():
        return model(
            **inputs,
            decoder_input_ids=given,
            output_hidden_states=True,
            output_attentions=True,
            use_cache=False,
        )


class ForcedCodebook(Forced):
    """One row of the loop.

    Args:
        outputs: of all rows, forced through all of their positions but the last.
        row: which of them.
        tokens: ``[S]``, those that the loop chose.
        codebooks: rows that share their hidden states.
    """

    def __init__(self, outputs: Any, row: int, tokens: Tensor, *, codebooks: int) -> None:
        state = row // codebooks

        def of(layers: Any, at: int) -> tuple[Tensor, ...]:
            # Of its encoder, MusicGen Melody returns the last states only, as a tensor.
            by_layer = layers if isinstance(layers, tuple) else ()
            return tuple(layer[at : at + 1] for layer in by_layer)

        states = outputs.get("decoder_hidden_states", outputs.get("hidden_states"))
        self._outputs = SimpleNamespace(
            logits=outputs.logits[row : row + 1],
            decoder_hidden_states=of(states, state),
            decoder_attentions=of(outputs.get("decoder_attentions"), state),
            cross_attentions=of(outputs.get("cross_attentions"), state),
            encoder_hidden_states=of(outputs.get("encoder_hidden_states"), state),
            encoder_attentions=of(outputs.get("encoder_attentions"), state),
        )
        self._first = outputs.logits.shape[1] - len(tokens)
        self._tokens = tokens
