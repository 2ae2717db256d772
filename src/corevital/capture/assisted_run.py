"""Observes assisted decoding: forward passes over several candidate tokens, of which some stay."""

from __future__ import annotations

import time
from typing import Any, Final

from torch import Tensor, nn

from corevital.capture.cache import keeps_cross_attention, only_appends
from corevital.capture.forward_inputs import cached_positions
from corevital.capture.layers import DecoderLayers, EncoderLayers, is_encoder_decoder
from corevital.capture.masks import padding_mask
from corevital.capture.plan import CapturePlan
from corevital.capture.prefill import Prefill
from corevital.capture.run import GenerationRun
from corevital.capture.ties import Ties
from corevital.capture.unobservable import Unobservable
from corevital.record import CaptureMode

_OTHER_TOKENS: Final = "the forward passes are not those of the accepted tokens"


class AssistedRun(GenerationRun):
    """One call of ``generate`` with an assistant, prompt lookup or the like.

    A forward pass gets the newest token and the candidates for those after it: one position for
    each candidate, and one for the token behind them. How many of them count is known when the
    tokens are. Each accepted token is then a step of its own; all of a forward pass have the same
    time. Speculative decoding: Leviathan et al., Fast Inference from Transformers via Speculative
    Decoding (2023).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: DecoderLayers | None,
        plan: CapturePlan,
        prompt_length: int,
        encoder_layers: EncoderLayers | None = None,
    ) -> None:
        super().__init__(model, layers, plan, encoder_layers=encoder_layers)
        self._length = prompt_length
        self._positions = 1
        self._given: Tensor | None = None
        self._kept_logits: Tensor | None = None
        self._ties = Ties()
        if plan.mode is CaptureMode.OFF:
            self.signals.end("capture is off", "logits", "hidden", "attention", "prompt")

    def _prompt_known(self, length: int) -> None:
        self._length = length
        if self.watch is not None:
            self.watch.prompt_is(self._length)

    def forward_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The forward pass over the candidates begins; before the first, so does the prompt."""
        if not self._token_due and self.untied is None:
            self._tie(self._keep_given, args, kwargs)
        super().forward_starts(args, kwargs)

    def _keep_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = self._given_ids(args, kwargs)
        if ids is None:
            raise Unobservable("assisted decoding of embeddings")
        positions = ids.shape[1]
        if self.steps == 0:
            if cached_positions(kwargs) != 0:
                raise Unobservable("assisted decoding that continues a cache")
            positions -= self._length - 1
        if positions < 1:
            raise Unobservable(_OTHER_TOKENS)
        self._positions = positions
        self._given = ids[:, -positions:]

    def _begin_attention(self, kwargs: dict[str, Any]) -> None:
        append_only = only_appends(kwargs.get("past_key_values"))
        self.attention.begin_step(
            append_only=append_only, positions=self._positions, continues=True
        )

    def _begin_cross_attention(self, kwargs: dict[str, Any]) -> None:
        keeps_keys = keeps_cross_attention(kwargs.get("past_key_values"))
        self.cross_attention.begin_step(append_only=keeps_keys, positions=self._positions)

    def _begin_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if is_encoder_decoder(self.model):
            if self.encoder is not None:
                super()._begin_prompt(args, kwargs)
            return
        mask = padding_mask(kwargs.get("attention_mask"))
        self.prompt_mask = None if mask is None else mask[:, : self._length]
        self.signals.observe("prompt", self._begin_prefill, args, kwargs)

    def _prefill_of(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Prefill:
        candidates = self._positions - 1
        return Prefill(input_ids, self.prompt_mask, candidates, memory=self._memory)

    def _keep_newest(self, position: int) -> None:
        states = self._states[position]
        if states.shape[1] > self._positions:
            self._states[position] = states[:, -self._positions :].clone()

    def _add_step(self, output: Any, step: int) -> None:
        """Put everything by until it is known which tokens are accepted."""
        self.signals.observe("logits", self._keep_logits, output)
        if self._reading_prompt is not None:
            self.signals.observe("prompt", self._read_prompt, self._reading_prompt, output)
            self._reading_prompt = None

    def _keep_logits(self, output: Any) -> None:
        if output.logits.shape[1] < self._positions:
            raise Unobservable("the logits do not reach every candidate")
        # A copy, because logits processors write into what the model returned.
        self._kept_logits = output.logits[:, -self._positions :].clone()

    def token_chosen(self, input_ids: Tensor) -> None:
        """Some tokens were accepted; ``input_ids`` ``[1, prompt + steps]`` ends with them.

        Before a forward pass, ``transformers`` 4.57 asks its criteria about the candidates too.
        """
        if not self._token_due:
            return
        accepted = input_ids.shape[1] - self._length
        if self.untied is None and not 0 < accepted <= self._positions:
            self.untie(_OTHER_TOKENS)
        step = self.steps
        self.token_times_ns += [time.perf_counter_ns()] * accepted
        if self.untied is None:
            self._tie(self._accept, input_ids, accepted, step)
        self._length = input_ids.shape[1]
        self._token_known(input_ids)

    def _accept(self, input_ids: Tensor, accepted: int, step: int) -> None:
        assert self._given is not None
        newest = input_ids[:, self._length - 1 : self._length - 1 + accepted]
        self._ties.add(self._given[:, :accepted], newest)
        self.signals.observe("logits", self._accept_logits, accepted)
        if self._states:
            self.signals.observe("hidden", self._accept_states, accepted, step)
        self.signals.observe("attention", self.attention.end_steps, step, accepted)
        if self.encoder is not None:
            self.signals.observe("cross_attention", self.cross_attention.end_steps, step, accepted)

    def _accept_logits(self, accepted: int) -> None:
        logits, self._kept_logits = self._kept_logits, None
        assert logits is not None
        for place in range(accepted):
            self.logits.add(logits[:, place : place + 1])

    def _accept_states(self, accepted: int, step: int) -> None:
        states, self._states = self._states, {}
        if any(state.shape[1] != self._positions for state in states.values()):
            raise Unobservable("a layer does not reach every candidate")
        for place in range(accepted):
            at_place = {at: state[:, place : place + 1] for at, state in states.items()}
            self.hidden.add(step + place, at_place)

    def _confirm(self) -> None:
        """Untie everything if the forward passes were given other tokens."""
        if not self._ties.hold():
            self.untie(_OTHER_TOKENS)
