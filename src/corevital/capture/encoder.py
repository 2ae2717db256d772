"""Observes the one forward pass of an encoder-decoder's encoder, wherever it is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from corevital.capture.attention import AttentionCall
from corevital.capture.attention_rows import RowStatistics
from corevital.capture.layers import EncoderLayers
from corevital.capture.masks import visible_positions
from corevital.capture.plan import CapturePlan
from corevital.capture.position_statistics import PositionStatistics
from corevital.capture.prompt import LayerTransformation, PromptAttention
from corevital.capture.run_memory import RunMemory
from corevital.capture.unobservable import Unobservable
from corevital.record import CaptureMode

Observed = Callable[..., None]
"""``observed(signal, observe, *args)`` calls ``observe(*args)``, whose failure ends ``signal``."""

HIDDEN: Final = "encoder_hidden"
ATTENTION: Final = "encoder_attention"
PROMPT: Final = "prompt"
SIGNALS: Final = (HIDDEN, ATTENTION, PROMPT)


class EncoderObserver:
    """What an encoder was given, and what it showed while that passed through.

    Only the first call of the encoder counts: a generation encodes its prompt once.

    Attributes:
        running: whether the encoder is at work and is observed.
        seen: whether the encoder was called.
        rows: sequences that it was given, a prompt with several answers once; ``None`` if unknown.
        input_ids: ``[B, P]`` tokens of the prompt; ``None`` when it is given otherwise.
        input_mask: ``[B, P]``, 0 at padding of what the encoder was given; ``None`` without any.
        output_mask: ``[B, K]`` of the positions that the decoder attends to, 0 at padding.
        output_positions: K.
        valid: ``[B, P]`` boolean of the positions of the encoder's layers, False at padding.
        hidden: statistics of the layers' states.
        attention_rows: statistics of the layers' attention.
        attention_maps: basin scores and sparse weights.
        transformation: how much every layer changes the states.
    """

    def __init__(self, layers: EncoderLayers, plan: CapturePlan, memory: RunMemory) -> None:
        self._memory = memory
        self._layers = layers
        self._plan = plan
        self._last = len(layers.layers) - 1
        self._last_states: Tensor | None = None
        self._before: Tensor | None = None
        self._first_mask: tuple[Any] | None = None
        self._tokens: int | None = None
        self.valid: Tensor | None = None
        self.running = False
        self.seen = False
        self.rows: int | None = None
        self.input_ids: Tensor | None = None
        self.input_mask: Tensor | None = None
        self.output_mask: Tensor | None = None
        self.output_positions: int | None = None
        self.hidden = PositionStatistics()
        self.attention_rows: RowStatistics | None = None
        self.attention_maps: PromptAttention | None = None
        self.transformation: LayerTransformation | None = None

    @property
    def count(self) -> int:
        """Number of layers."""
        return len(self._layers.layers)

    def is_encoder(self, module: nn.Module) -> bool:
        """Whether ``module`` is the encoder."""
        return module is self._layers.encoder

    def starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The encoder is called."""
        if self.seen:
            return
        self.seen = True
        self.running = self._plan.mode is CaptureMode.FULL and self.count > 0
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and ids.dim() == 2 and not ids.is_floating_point():
            self.input_ids = ids
        embeddings = kwargs.get("inputs_embeds")
        text = embeddings if isinstance(embeddings, Tensor) else self.input_ids
        self._tokens = text.shape[1] if text is not None else None
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if isinstance(mask, Tensor) and mask.dim() == 2:
            self.input_mask = mask

    def layer_returns(
        self, module: nn.Module, args: tuple[Any, ...], output: Any, observed: Observed
    ) -> None:
        """A module that may be one of the encoder's layers returns its hidden states."""
        position = self._layers.layer_position.get(id(module))
        states = output[0] if isinstance(output, tuple | list) and output else output
        if position is None or not isinstance(states, Tensor):
            return
        square = states.dim() == 3 and states.shape[0] == states.shape[1] > 1
        if square and not isinstance(module, GradientCheckpointingLayer):
            # Some layers of older models have the positions first.
            return
        if position == 0 and args and isinstance(args[0], Tensor):
            self._before = args[0]
        if position == self._last:
            # The last layer's state is the one after the final norm, which is still to come.
            self._last_states = states
            return
        self._observe(position, states, observed)

    def _observe(self, position: int, states: Tensor, observed: Observed) -> None:
        observed(HIDDEN, self._hidden, position, states)
        observed(PROMPT, self._transformation, position, states)

    def _hidden(self, position: int, states: Tensor) -> None:
        self.hidden.observe(position, states, self._positions(states))

    def _transformation(self, position: int, states: Tensor) -> None:
        valid = self._positions(states)
        self._must_be_within_limits(valid)
        if self.transformation is None:
            self.transformation = LayerTransformation(valid)
        before, self._before = self._before, None
        self.transformation.observe(position, before, states)

    def attention_returns(self, module: nn.Module, call: AttentionCall, observed: Observed) -> None:
        """A module's attention function returns; its layer is told by ``module``."""
        position = self._layers.position_inside.get(id(module))
        if position is None:
            return
        if self._first_mask is None:
            self._first_mask = (call.mask,)
        observed(ATTENTION, self._attention, module, call._replace(position=position))

    def _attention(self, module: nn.Module, call: AttentionCall) -> None:
        rows, _, queries, _ = call.rows.shape
        if call.keys != queries:
            raise Unobservable(f"{queries} positions of the encoder attend to {call.keys}")
        if _is_causal(module, call):
            raise Unobservable("the encoder's attention is causal")
        valid = self._valid_for(rows, queries, call.rows.device)
        self._must_be_within_limits(valid)
        if self.attention_maps is None:
            self.attention_rows = RowStatistics(valid)
            self.attention_maps = PromptAttention(
                valid, causal=False, rows=self.attention_rows, memory=self._memory
            )
        self.attention_maps.observe(call)

    def returns(self, output: Any, observed: Observed) -> None:
        """The encoder returns."""
        states = output[0] if isinstance(output, tuple | list) and output else output
        states = getattr(states, "last_hidden_state", states)
        if isinstance(states, Tensor) and self.output_positions is None and states.dim() == 3:
            self.output_positions = states.shape[1]
            self.rows = states.shape[0]
        if not self.running:
            return
        self.running = False
        last, self._last_states = self._last_states, None
        if last is not None:
            # What follows the last layer may be more than a norm, and give other positions.
            after_norm = isinstance(states, Tensor) and states.shape == last.shape
            self._observe(self._last, states if after_norm else last, observed)
        observed(ATTENTION, self._finish_attention)
        observed(PROMPT, self._finish_transformation)
        self.release()

    def _finish_attention(self) -> None:
        if self.attention_maps is not None and self.attention_rows is not None:
            self.attention_maps.reduce()
            self.attention_rows.finish()

    def _finish_transformation(self) -> None:
        if self.transformation is not None:
            self.transformation.reduce()

    def release(self) -> None:
        """Let go of everything that has the size of the encoder's hidden states."""
        self.running = False
        self._before = self._last_states = self._first_mask = None
        if self.attention_maps is not None:
            self.attention_maps.release()
        if self.transformation is not None:
            self.transformation.release()

    def forget(self) -> None:
        """Drop what was observed; what the encoder was given is still known."""
        self.release()
        self.hidden = PositionStatistics()
        self.attention_rows = self.attention_maps = self.transformation = None

    def decoding_starts(self, kwargs: dict[str, Any]) -> str | None:
        """The first forward pass begins, with these arguments.

        Returns why nothing is known of the encoder; ``None`` when it ran or is still to run.
        """
        given = kwargs.get("encoder_outputs")
        states = given[0] if isinstance(given, tuple | list) and given else None
        states = getattr(given, "last_hidden_state", states)
        if isinstance(states, Tensor) and states.dim() == 3:
            self.output_positions = states.shape[1]
            mask = kwargs.get("attention_mask")
            if isinstance(mask, Tensor) and mask.shape == states.shape[:2]:
                self.output_mask = mask
        return "the encoder's outputs were given" if given is not None and not self.seen else None

    def decoder_attends(self, call: AttentionCall) -> None:
        """A cross-attention of the first step tells which positions the decoder sees."""
        rows, positions = call.rows.shape[0], call.keys
        if self.output_mask is None and positions == self.output_positions:
            self.output_mask = visible_positions(call.mask, rows, positions)

    def _positions(self, states: Tensor) -> Tensor:
        """Which of the positions of a layer's states are no padding, ``[B, P]``."""
        if states.dim() != 3:
            raise Unobservable(f"the encoder's states have {states.dim()} dimensions")
        return self._valid_for(states.shape[0], states.shape[1], states.device)

    def _valid_for(self, rows: int, positions: int, device: torch.device) -> Tensor:
        if self.valid is None:
            self.valid = self._padding(rows, positions, device)
        if self.valid.shape != (rows, positions):
            expected = " x ".join(str(size) for size in self.valid.shape)
            raise Unobservable(f"the encoder's layers see {rows} x {positions}, not {expected}")
        return self.valid

    def _padding(self, rows: int, positions: int, device: torch.device) -> Tensor:
        mask = self.input_mask
        if mask is not None and mask.shape == (rows, positions):
            return mask.bool().to(device)
        visible = None
        if self._first_mask is not None:
            visible = visible_positions(self._first_mask[0], rows, positions)
        elif mask is not None:
            raise Unobservable("the padding of the encoder's positions is not known")
        if visible is None and self._tokens not in (None, positions):
            raise Unobservable(
                f"the encoder's layers see {positions} positions for {self._tokens} prompt tokens"
            )
        if visible is None:
            visible = torch.ones(rows, positions, dtype=torch.bool, device=device)
        return visible.to(device)

    def _must_be_within_limits(self, valid: Tensor) -> None:
        positions, most = valid.shape[1], self._plan.prompt_max_tokens
        if not self._plan.prompt:
            raise Unobservable("prompt telemetry is switched off")
        if positions > most:
            raise Unobservable(f"prompt of {positions} positions; the limit is {most}")
        if positions < 2:
            raise Unobservable("prompt of fewer than 2 positions")


def _is_causal(module: nn.Module, call: AttentionCall) -> bool:
    """Whether a backend without an explicit mask lets no position see a later one."""
    if call.mask is not None or call.weights is not None:
        return False
    asked = call.options.get("is_causal")
    return bool(getattr(module, "is_causal", True) if asked is None else asked)
