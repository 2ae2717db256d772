"""The columns of an encoder-decoder's record, computed again from one forward pass.

An eager model that is not instrumented is forced through the returned sequence: its logits, states
and attentions at every position are those of the steps. NumPy in float64, nothing shared with
CoreVital.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.capture.recomputation import Array, row_statistics
from tests.models import GenerativeModel


class Forced:
    """One sequence forced through a model.

    Args:
        model: with eager attention.
        inputs: what the encoder is given, batch size 1, without padding.
        sequence: ``[T]``, the returned tokens, the decoder's first included.
        prompt: how many of these the decoder began with.
    """

    def __init__(
        self, model: GenerativeModel, inputs: dict[str, Tensor], sequence: Tensor, prompt: int
    ) -> None:
        with torch.no_grad():
            self._outputs: Any = model(
                **inputs,
                decoder_input_ids=sequence[None, :-1],
                output_hidden_states=True,
                output_attentions=True,
                use_cache=False,
            )
        self._first = prompt - 1
        self._tokens = sequence[prompt:]

    def logits(self) -> dict[str, Array]:
        """Entropy and surprisal ``[S]`` in bits, margin."""
        logits = self._outputs.logits[0, self._first :].double()
        log2 = (torch.log_softmax(logits, -1) / np.log(2)).numpy()
        p = np.exp2(log2)
        ranked = np.sort(p, axis=-1)
        return {
            "entropy": -(p * log2).sum(-1),
            "surprisal": -log2[np.arange(len(log2)), self._tokens.numpy()],
            "margin": ranked[:, -1] - ranked[:, -2],
        }

    def hidden(self) -> dict[str, Array]:
        """Statistics ``[S, L]`` of the newest token's state after each layer of the decoder."""
        layers = self._outputs.decoder_hidden_states[1:]
        states = np.stack([layer[0, self._first :].double().numpy() for layer in layers], axis=1)
        return {
            "mean": states.mean(-1),
            "std": states.std(-1, ddof=1),
            "l2_norm": np.linalg.norm(states, axis=-1),
            "max_abs": np.abs(states).max(-1),
        }

    def attention(self) -> dict[str, Array]:
        """Statistics ``[S, L]`` of the newest token's self-attention."""
        return self._rows(self._outputs.decoder_attentions, causal=True)

    def cross_attention(self) -> dict[str, Array]:
        """Statistics ``[S, L]`` of the newest token's attention to the encoder's positions."""
        return self._rows(self._outputs.cross_attentions, causal=False)

    def _rows(self, attentions: Any, *, causal: bool) -> dict[str, Array]:
        columns: dict[str, list[float]] = {}
        steps = range(self._first, attentions[0].shape[2])
        for query in steps:
            for layer in attentions:
                rows = layer[0, :, query].double().numpy()
                seen = rows[:, : query + 1] if causal else rows
                for name, value in row_statistics(seen).items():
                    columns.setdefault(name, []).append(value)
        shape = (len(steps), len(attentions))
        return {name: np.asarray(values).reshape(shape) for name, values in columns.items()}

    def own_weight(self) -> Array:
        """Each step's self-attention weight on its own token, ``[S, L, H]``."""
        layers = [layer[0].double().numpy() for layer in self._outputs.decoder_attentions]
        own = np.stack([layer.diagonal(axis1=-2, axis2=-1) for layer in layers])
        return own[:, :, self._first :].transpose(2, 0, 1)

    def encoder_hidden(self) -> dict[str, Array]:
        """Statistics ``[L]`` of the encoder's states over positions."""
        layers = self._outputs.encoder_hidden_states[1:]
        states = np.stack([layer[0].double().numpy() for layer in layers])
        return {
            "mean": states.mean((1, 2)),
            "std": states.std(-1, ddof=1).mean(-1),
            "l2_norm": np.linalg.norm(states, axis=-1).mean(-1),
            "max_abs": np.abs(states).max((1, 2)),
        }

    def encoder_attention(self) -> dict[str, Array]:
        """Statistics ``[L]`` of the encoder's self-attention over heads and positions."""
        weights = self._encoder_weights()
        entropy = -(weights * np.log2(np.where(weights > 0, weights, 1.0))).sum(-1)
        normalized, largest = entropy / np.log2(weights.shape[-1]), weights.max(-1)
        by_head = entropy.mean(-1)
        return {
            "entropy_mean": by_head.mean(-1),
            "entropy_min": by_head.min(-1),
            "entropy_max": by_head.max(-1),
            "normalized_entropy_mean": normalized.mean((-2, -1)),
            "concentration_max": largest.max((-2, -1)),
            "concentration_min": largest.min((-2, -1)),
            "collapsed_heads": (normalized.mean(-1) < 0.03).sum(-1),
            "focused_heads": (largest.mean(-1) > 0.9).sum(-1),
        }

    def prompt(self) -> dict[str, Array]:
        """Layer transformation ``[L]``, basin ``[L, H]`` and weights above 0.01, by the encoder."""
        states = [layer[0].double().numpy() for layer in self._outputs.encoder_hidden_states]
        unit = [state / np.linalg.norm(state, axis=-1, keepdims=True) for state in states]
        pairs = zip(unit[1:], unit[:-1], strict=True)
        weights = self._encoder_weights()
        keys = weights.shape[-1]
        columns = weights.sum(-2)
        middle = columns[..., keys // 3 : 2 * keys // 3].sum(-1)
        return {
            "layer_transformation": np.asarray([1 - (a * b).sum(-1).mean() for a, b in pairs]),
            "basin": middle / (columns.sum(-1) - middle),
            "weights": weights,
        }

    def _encoder_weights(self) -> Array:
        return np.stack([layer[0].double().numpy() for layer in self._outputs.encoder_attentions])
