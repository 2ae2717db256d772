"""Observes one call of ``generate``: reduces every step as it appears, keeps small tensors only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corevital.capture.attention import AttentionCall, AttentionReducer
from corevital.capture.attention_functions import AttentionFunction, AttentionLookup
from corevital.capture.attention_modules import ModuleAttention
from corevital.capture.cache import NewestKey, keeps_cross_attention, newest_key, only_appends
from corevital.capture.chunk import MOST_STEPS
from corevital.capture.chunked_prefill import ChunkedPrefill
from corevital.capture.compiled import is_compiled
from corevital.capture.division import is_divided, is_shard, pipeline_stages
from corevital.capture.encoder import ATTENTION as ENCODER_ATTENTION
from corevital.capture.encoder import SIGNALS as ENCODER_SIGNALS
from corevital.capture.encoder import EncoderObserver
from corevital.capture.forward_inputs import (
    cached_positions,
    decoder_ids,
    given_ids,
    given_rows,
)
from corevital.capture.hidden import HiddenReducer
from corevital.capture.layers import DecoderLayers, EncoderLayers, decoder_size, is_encoder_decoder
from corevital.capture.logits import LogitsReducer
from corevital.capture.masks import padding_mask
from corevital.capture.observed_signals import ObservedSignals
from corevital.capture.plan import CapturePlan
from corevital.capture.prefill import Prefill
from corevital.capture.previous_token import middle_layers
from corevital.capture.put_by import PutBy
from corevital.capture.risk_check import RiskCheck
from corevital.capture.run_memory import RunMemory
from corevital.capture.same_prompts import answers_to_each
from corevital.capture.unobservable import Unobservable
from corevital.record import CaptureMode

if TYPE_CHECKING:
    from corevital.capture.watch import InterventionWatch

_ON_RISK_STEPS: Final = 8
_CONTINUED: Final = "the prompt continues a cache"
_OTHER: Final = -1
"""In place of a layer's position: no self-attention of the decoder's."""


class GenerationRun(PutBy):
    """One call of ``generate``, from its first forward pass to its last token.

    Attributes:
        token_times_ns: when each token was known, nanoseconds of ``time.perf_counter_ns``.
        input_ids: ``[B, prompt + S]`` as of the last token; ``None`` before the first.
        prompt_mask: ``[B, P]`` attention mask of the prompt; ``None`` when nothing is masked.
        encoder: what is seen of an encoder-decoder's encoder, ``None`` in a decoder-only model.
        signals: which signals are observed, why others are not, and the time it takes.
        full_from_step: the step from which an ``on_risk`` run observed everything.
        compiled: whether the inside of the forward pass is out of sight.
        untied: why the forward passes cannot be tied to the tokens; ``None`` when they can.
        watch: what may stop the run early; ``None`` where nothing may.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: DecoderLayers | None,
        plan: CapturePlan,
        chunks: ChunkedPrefill | None = None,
        encoder_layers: EncoderLayers | None = None,
    ) -> None:
        stages = pipeline_stages(model)
        if stages > 1:
            # What is found here are the layers of one process, and none of them may be the last.
            layers = None
        super().__init__(
            everything=plan.mode is CaptureMode.FULL,
            decoder=layers.decoder if layers is not None and layers.decoder is not model else None,
            last_layer=layers.layers[-1] if layers is not None else None,
        )
        self.model = model
        self.layers = layers
        self.plan = plan
        self.token_times_ns: list[int] = []
        self.input_ids: Tensor | None = None
        self.signals = ObservedSignals()
        self.full_from_step: int | None = None
        self.untied: str | None = None
        self._chunks = chunks
        self.watch: InterventionWatch | None = None
        most_steps = _ON_RISK_STEPS if plan.mode is CaptureMode.ON_RISK else MOST_STEPS
        self._memory = RunMemory.take()
        self.logits = LogitsReducer(plan.top_k, most_steps, self._memory)
        self.hidden = HiddenReducer(most_steps, self._memory)
        # Of use only where every step has them.
        weighed = range(0)
        if layers is not None and layers.keys_are_tokens and self.everything:
            weighed = middle_layers(len(layers.layers))
        self.attention = AttentionReducer(most_steps, weighed, memory=self._memory)
        self.cross_attention = AttentionReducer(most_steps, keys_per_step=0, memory=self._memory)
        self.encoder = (
            EncoderObserver(encoder_layers, plan, self._memory)
            if encoder_layers is not None
            else None
        )
        self.compiled = is_compiled(model)
        self._divided = is_divided(model)
        self._heads = decoder_size(model, "num_attention_heads") if self._divided else None
        self.prefill: Prefill | None = None
        self._reading_prompt: Prefill | None = None
        self._cached: Tensor | None = None
        self.prompt_mask: Tensor | None = None
        self._last = len(layers.layers) - 1 if layers is not None else -1
        self._layer_position = layers.layer_position if layers is not None else {}
        self._position_inside = layers.position_inside if layers is not None else {}
        self._cross_inside = layers.cross_inside if layers is not None else {}
        self._states: dict[int, Tensor] = {}
        self._rows: int | None = None
        self._queries: int | None = None
        self._width = decoder_size(model, "hidden_size")
        self._observing_forward = False
        self._token_due = False
        self._wrapped: dict[AttentionFunction, AttentionFunction] = {}
        self._module_attention = ModuleAttention()
        self._not_done: Tensor | None = None
        self._rows_to_stop: Tensor | None = None
        self._risk = None if plan.escalate is None else RiskCheck(plan.escalate)
        if stages > 1:
            reason = f"the layers are divided among {stages} processes"
            self.signals.end(reason, "hidden", "attention", "prompt")
        elif layers is None:
            self.signals.end("no decoder layers found", "hidden", "attention")
        elif layers.attention_obstacle is not None:
            self.signals.end(layers.attention_obstacle, "attention")
        if self.encoder is not None and "attention" in self.signals.unavailable:
            self.signals.end(self.signals.unavailable["attention"], "cross_attention")
        if self.encoder is not None and self.encoder.count == 0:
            self.signals.end("no encoder layers found", *ENCODER_SIGNALS)

    @property
    def steps(self) -> int:
        """Tokens known so far."""
        return len(self.token_times_ns)

    @property
    def next_step(self) -> int:
        """The step of the token that the forward pass of now, or the next one, predicts."""
        return self.steps

    @property
    def prompt_length(self) -> int:
        """Positions of ``input_ids`` before the first generated token."""
        return 0 if self.input_ids is None else int(self.input_ids.shape[1]) - self.steps

    def state_rows(self, rows: int) -> NDArray[np.int64]:
        """The row ``[B]`` of the hidden states that each of so many sequences has."""
        return np.arange(rows)

    def lengths(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
        """Steps of each sequence ``[B]`` of ``[B, S]``, where they are known to be fewer."""
        return None

    def loop_begins(self, input_ids: Tensor) -> None:
        """The loop over tokens begins, with ``input_ids`` ``[B, prompt]`` of the decoder."""
        self._tie(self._prompt_known, input_ids.shape[1])

    def _prompt_known(self, length: int) -> None:
        if self._chunks is not None and is_encoder_decoder(self.model):
            self._chunks.prompt_is(length)

    def _follow_prompt(
        self, chunks: ChunkedPrefill, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        chunks.forward_starts(self._given_ids(args, kwargs), kwargs)

    def _given_ids(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        """Token ids ``[B, Q]`` that a forward pass gives the decoder."""
        return decoder_ids(kwargs) if is_encoder_decoder(self.model) else given_ids(args, kwargs)

    def forward_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's forward pass begins."""
        if self._token_due:
            # A second forward pass before the token of the first: not one of the decoding loop.
            self._observing_forward = False
            self.look_at_once()
            return
        if self._chunks is not None:
            if self.untied is None:
                self._tie(self._follow_prompt, self._chunks, args, kwargs)
            if self.untied is not None or not self._chunks.complete:
                return
        self._observing_forward = True
        self._forget_forward()
        # Of a prompt, everything is reduced at once, to let go of it.
        if self.next_step > 0 and self.encoder is None:
            self.put_by(attention=not self._divided)
        if self.encoder is None:
            self._rows = self._given_rows(args, kwargs)
        else:
            self._decoder_starts(kwargs)
        self.signals.observe("attention", self._begin_attention, kwargs)
        if self.next_step == 0:
            self._begin_prompt(args, kwargs)

    def _given_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
        return given_rows(args, kwargs)

    def _forget_forward(self) -> None:
        self._states.clear()
        self.look_at_once()

    def _begin_attention(self, kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        append_only = only_appends(cache)
        self.attention.begin_step(
            append_only=append_only,
            newest_key=NewestKey.LAST if append_only else newest_key(cache),
            continues=self._chunks is not None and self.steps == 0,
        )
        self.expected_keys = self.attention.expected_keys

    def _begin_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.encoder is not None:
            reason = self.encoder.decoding_starts(kwargs)
            if reason is not None:
                self.signals.end(reason, *ENCODER_SIGNALS)
        elif self._chunks is not None and not self._chunks.whole:
            self.prompt_mask = self._chunks.mask
            self.signals.unavailable.setdefault("prompt", "chunked prefill")
        else:
            self.prompt_mask = padding_mask(kwargs.get("attention_mask"))
            self.signals.observe("prompt", self._begin_prefill, args, kwargs)

    def _decoder_starts(self, kwargs: dict[str, Any]) -> None:
        ids = decoder_ids(kwargs)
        self._rows, self._queries = (None, None) if ids is None else ids.shape
        self.signals.observe("cross_attention", self._begin_cross_attention, kwargs)

    def _begin_cross_attention(self, kwargs: dict[str, Any]) -> None:
        keeps_keys = keeps_cross_attention(kwargs.get("past_key_values"))
        self.cross_attention.begin_step(append_only=keeps_keys)

    def _begin_prefill(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.plan.mode is not CaptureMode.FULL or not self.plan.prompt:
            return
        input_ids = given_ids(args, kwargs)
        cached = cached_positions(kwargs)
        reason = _prompt_unobservable(input_ids, cached, self.plan)
        if reason is not None:
            self.signals.end(reason, "prompt")
        elif input_ids is not None:
            self.prefill = self._reading_prompt = self._prefill_of(input_ids, kwargs)
            self._cached = cached if isinstance(cached, Tensor) else None

    def _prefill_of(self, input_ids: Tensor, kwargs: dict[str, Any]) -> Prefill:
        mask = self.prompt_mask
        if mask is not None:
            # Some models lengthen it to what a cache of a fixed size will hold.
            mask = mask[:, : input_ids.shape[1]]
        answers = answers_to_each(self.model, input_ids, mask, kwargs)
        return Prefill(input_ids, mask, answers=answers, memory=self._memory)

    def layer_returns(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """A decoder layer returns its hidden states."""
        if self.layers_put_by is None:
            self._see_layer(module, args, output)
        elif self.everything or self.last_layer is module:
            self.layers_put_by.append((module, output))

    def _see_layer(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._observing_forward:
            if self.encoder is not None and self.encoder.running:
                self.encoder.layer_returns(module, args, output, self.signals.observe)
            return
        position = self._layer_position.get(id(module))
        if position is None or not (self.everything or position == self._last):
            if self.encoder is not None and self.encoder.running:
                self.encoder.layer_returns(module, args, output, self.signals.observe)
            return
        states = self._hidden_states(output)
        if states is None:
            self.signals.observe("hidden", self._must_be_states, output)
            return
        self._states[position] = states
        if states.shape[1] > 1:
            self.signals.observe("hidden", self._keep_newest, position)
            if self._reading_prompt is not None and position != self._last:
                self.signals.observe("prompt", self._reading_prompt.layer, position, args, states)

    def _hidden_states(self, output: Any) -> Tensor | None:
        """``[B, Q, D]`` of what a layer or decoder returns; ``None`` when it is nothing like that.

        Some layers keep several residual streams side by side, or have the batch elsewhere; some
        decoders project what their last layer returns to another width.
        """
        if not isinstance(output, Tensor):
            if isinstance(output, tuple | list):
                output = output[0] if output else None
            if not isinstance(output, Tensor):
                output = getattr(output, "last_hidden_state", None)
            if not isinstance(output, Tensor):
                return None
        shape = output.shape
        if len(shape) != 3 or (self._divided and is_shard(output)):
            return None
        rows, queries, width = shape
        expected = self._rows in (None, rows) and self._width in (None, width)
        return output if expected and self._queries in (None, queries) else None

    def _must_be_states(self, output: Any) -> None:
        states = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(states, Tensor):
            return
        if is_shard(states):
            reason = "the hidden states are divided among processes"
            self.signals.end(reason, "hidden", "prompt")
            return
        if states.shape[:2] == (self._queries, self._rows):
            raise Unobservable("the layers have the positions before the sequences")

    def _keep_newest(self, position: int) -> None:
        # A copy, because a view would keep the states of a whole prompt alive.
        self._states[position] = self._states[position][:, -1:].clone()

    def encoder_starts(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """A model inside the model is called, which may be the encoder."""
        if self.encoder is not None and self.encoder.is_encoder(module):
            self.encoder.starts(args, kwargs)

    def encoder_returns(self, module: nn.Module, output: Any) -> None:
        """A model inside the model returns, which may be the encoder."""
        if self.encoder is not None and self.encoder.is_encoder(module):
            self.encoder.returns(output, self.signals.observe)

    def decoder_returns(self, output: Any) -> None:
        """The decoder returns its last hidden states, after the final norm."""
        if not self._observing_forward:
            return
        if self.layers_put_by:
            self._see_layers_put_by()
        states = self._hidden_states(output)
        if states is None:
            return
        self._states[self._last] = states
        if states.shape[1] > 1:
            self.signals.observe("hidden", self._keep_newest, self._last)
            if self._reading_prompt is not None:
                self.signals.observe("prompt", self._reading_prompt.last_layer, self._last, states)

    def looked_up_attention(
        self,
        lookup: AttentionLookup,
        interface: Any,
        asked: tuple[Any, ...],
        options: dict[str, Any],
    ) -> AttentionFunction:
        """``observed_attention`` of what ``lookup`` finds in ``interface``.

        Every layer asks for the same, and after the first of a forward pass the answer is known.
        """
        function = self.observed_attention(lookup(interface, *asked, **options))
        if self._observing_forward and self.encoder is None and not options:
            self.known_attention = interface, asked, function
        return function

    def observed_attention(self, function: AttentionFunction) -> AttentionFunction:
        """``function`` itself, followed by an observation of what it was given."""
        if self.encoder is None:
            if not self._observing_forward or "attention" in self.signals.unavailable:
                return function
        elif not self._observing_forward and not self.encoder.running:
            return function
        wrapped = self._wrapped.get(function)
        if wrapped is None:
            wrapped = self._wrapped[function] = self._wrap(function)
        return wrapped

    def _wrap(self, function: AttentionFunction) -> AttentionFunction:
        position_inside, last, encoder = self._position_inside, self._last, self.encoder
        reducer, newest_keys = self.attention, self.attention.keys

        def attention(
            module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
        ) -> tuple[Tensor, Tensor | None]:
            position = position_inside.get(id(module))
            wanted = self.everything or position == last
            if position is None:
                wanted = encoder is not None
            # One attention function calls another: they are one, and the outer one is known.
            if not wanted or self.inside_attention:
                return function(module, query, key, value, *args, **kwargs)
            self.inside_attention = True
            try:
                result = function(module, query, key, value, *args, **kwargs)
            finally:
                self.inside_attention = False
            try:
                put_by = self.attention_put_by
                if put_by is None or position is None:
                    mask = args[0] if args else kwargs.get("attention_mask")
                    place = _OTHER if position is None else position
                    call = AttentionCall(place, query, key, mask, result[1], kwargs)
                    self._attention_returns(module, call)
                else:
                    keys = key.size(2)
                    if keys == self.expected_keys and not key.requires_grad:
                        newest_keys[position] = key
                    else:
                        reducer.keep_keys(position, key)
                    put_by.append((position, query, keys, args, kwargs, result[1]))
            except Exception as error:
                self.signals.fail("attention", error)
            return result

        return attention

    def signal_of(self, module: nn.Module) -> str | None:
        """The signal that an attention module shows; ``None`` where it is not to be looked at."""
        if self.encoder is not None and self.encoder.running:
            signal, wanted = ENCODER_ATTENTION, True
        else:
            signal, position = "attention", self._position_of_part(module)
            if position is None:
                signal, position = "cross_attention", self._cross_inside.get(id(module))
            wanted = position is not None and (self.everything or position == self._last)
            wanted = wanted and self._observing_forward
        return signal if wanted and signal not in self.signals.unavailable else None

    def _position_of_part(self, module: nn.Module) -> int | None:
        return None if self.layers is None else self.layers.position_of_part(module)

    def attention_module_returns(
        self,
        signal: str,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        output: Any,
    ) -> None:
        """An attention module whose attention is not looked up returns, perhaps its weights."""
        self.signals.observe(signal, self._see_module, module, args, kwargs, output)

    def _see_module(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        position = self._position_of_part(module)
        place = _OTHER if position is None else position
        weights, mask = self._module_attention.weights_and_mask(module, args, kwargs, output)
        self._attention_returns(module, AttentionCall(place, None, None, mask, weights, {}))

    def _attention_returns(self, module: nn.Module, call: AttentionCall) -> None:
        """An attention returns, at a layer's position or outside of the layers."""
        heads = call.rows.shape[1]
        if self._divided and (is_shard(call.rows) or heads != self._heads):
            self._refuse_attention(heads)
        elif call.position == _OTHER:
            if self.encoder is not None:
                self._other_attention(self.encoder, module, call)
        elif "attention" not in self.signals.unavailable:
            self.attention.observe(call)
            if self._reading_prompt is not None:
                self.signals.observe("prompt", self._reading_prompt.attention, call)

    def _refuse_attention(self, seen: int) -> None:
        heads = self._heads or "its"
        reason = f"processes share the model, and this one has {seen} of {heads} heads"
        self.signals.end(reason, "attention")
        if self.encoder is not None:
            self.signals.end(reason, "cross_attention", ENCODER_ATTENTION)

    def _see_layers_put_by(self) -> None:
        layers, self.layers_put_by = self.layers_put_by, []
        states, position_of = self._states, self._layer_position
        usual = (self._rows, 1, self._width)
        for module, output in layers or ():
            if type(output) is Tensor and output.shape == usual and id(module) in position_of:
                states[position_of[id(module)]] = output
            else:
                self._see_layer(module, (), output)

    def _see_attention_put_by(self) -> None:
        keep_row = self.attention.keep_row
        for position, query, keys, args, kwargs, weights in self.attention_put_by or ():
            mask = args[0] if args else kwargs.get("attention_mask")
            rows, needs_scores = (query, True) if weights is None else (weights, False)
            keep_row(position, rows, keys, mask, kwargs, needs_scores)

    def _other_attention(
        self, encoder: EncoderObserver, module: nn.Module, call: AttentionCall
    ) -> None:
        """An attention that is no self-attention of the decoder's."""
        if encoder.running:
            encoder.attention_returns(module, call, self.signals.observe)
            return
        position = self._cross_inside.get(id(module))
        if position is None or not (self.everything or position == self._last):
            return
        if self.next_step == 0:
            self.signals.observe("cross_attention", encoder.decoder_attends, call)
        call = call._replace(position=position)
        self.signals.observe("cross_attention", self.cross_attention.observe, call)

    def forward_returns(self, output: Any) -> None:
        """The model's forward pass ends: the step's rows and states are complete."""
        if not self._observing_forward:
            return
        if self.layers_put_by:
            self._see_layers_put_by()
        if self.attention_put_by:
            self.signals.observe("attention", self._see_attention_put_by)
        self.look_at_once()
        self._observing_forward = False
        self._token_due = True
        if self._divided and is_shard(getattr(output, "logits", None)):
            reason = "the logits are divided among processes"
            self.signals.end(reason, "logits", "prompt", "intervention")
        if self.watch is not None:
            self.signals.observe("intervention", self.watch.see, output)
        self._add_step(output, self.next_step)

    def _add_step(self, output: Any, step: int) -> None:
        """Take what the forward pass before token ``step`` showed."""
        self.signals.observe("logits", self._keep_logits, output)
        if self._states:
            self.signals.observe("hidden", self._add_states, step)
        self.signals.observe("attention", self.attention.end_step, step)
        if self.encoder is not None:
            self.signals.observe("cross_attention", self.cross_attention.end_step, step)
        if self._reading_prompt is not None:
            self.signals.observe("prompt", self._read_prompt, self._reading_prompt, output)
            self._reading_prompt = None

    def _read_prompt(self, prefill: Prefill, output: Any) -> None:
        prefill.logits(self.model, output.logits)

    def _add_states(self, step: int) -> None:
        states, self._states = self._states, {}
        self.hidden.add(step, states)

    def _keep_logits(self, output: Any) -> None:
        self.logits.add(output.logits)

    def token_chosen(self, input_ids: Tensor) -> None:
        """A token was accepted; ``input_ids`` ``[B, prompt + steps]`` ends with it."""
        self.token_times_ns.append(time.perf_counter_ns())
        self._token_known(input_ids)

    def _token_known(self, input_ids: Tensor) -> None:
        self.input_ids = input_ids
        self._token_due = False
        self._reading_prompt = None
        if self.logits.pending and self.logits.full:
            self.signals.observe("logits", self._reduce_logits)
            if self._risk is not None and not self.everything:
                self.signals.observe("logits", self._consider_escalation, self._risk)

    def _reduce_logits(self) -> None:
        self.logits.reduce(self._chosen().T)

    def _chosen(self) -> Tensor:
        """Tokens ``[B, n]`` of the steps whose logits are pending."""
        assert self.input_ids is not None
        return self.input_ids[:, self.prompt_length + self.logits.reduced :]

    def _consider_escalation(self, risk: RiskCheck) -> None:
        self.hidden.reduce()
        columns = self.logits.result()
        assert columns is not None
        states = self.state_rows(columns.shape[2])
        if risk.holds(columns, self.hidden.last_layer_cosines, states):
            self.everything = True
            self.full_from_step = self.next_step

    def not_done(self, input_ids: Tensor) -> Tensor:
        """All-False ``[B]``: the answer of a stopping criterion that never stops."""
        rows = input_ids.shape[0]
        if self._not_done is None or self._not_done.shape[0] != rows:
            self._not_done = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        return self._not_done

    def untie(self, reason: str) -> None:
        """Observe nothing any more, and forget all: no token is that of a forward pass."""
        self.untied = reason
        self._observing_forward = False
        self._reading_prompt = None
        self.signals.end(reason, "logits", "hidden", "attention", "prompt")
        if self.encoder is not None:
            self.signals.end(reason, "cross_attention", *ENCODER_SIGNALS)

    def settle(self, returned: Tensor | None, end_counter_ns: int) -> None:
        """``generate`` ended.

        Args:
            returned: the sequences ``[B, prompt + S]`` that it returned, if it did.
            end_counter_ns: when, in nanoseconds of ``time.perf_counter_ns``.
        """

    def rows_to_stop(self, input_ids: Tensor) -> Tensor:
        """Which sequences an intervention stops after this token, boolean ``[B]``."""
        # What is reduced for the decision is part of it.
        with self.signals.timed():
            self.signals.observe("intervention", self._decide, input_ids)
        rows, self._rows_to_stop = self._rows_to_stop, None
        return self.not_done(input_ids) if rows is None else rows

    def _decide(self, input_ids: Tensor) -> None:
        assert self.watch is not None
        self._rows_to_stop = self.watch.decide(self, input_ids)

    def finish_watch(self) -> None:
        """Learn of every sequence that was stopped; the generation is over."""
        if self.watch is not None:
            self.signals.observe("intervention", self.watch.finish)

    @property
    def certain_prefill(self) -> Prefill | None:
        """The prompt's telemetry, where it is known already that it is that of all of it."""
        return self.prefill if self._cached is None else None

    def reduce_states(self) -> None:
        """Reduce the hidden states that are pending, all of steps whose token is known."""
        self.signals.observe("hidden", self.hidden.reduce)

    def reduce_so_far(self, *, attention: bool) -> None:
        """Reduce what is pending, ``attention`` too if it is wanted."""
        self.signals.observe("logits", self._reduce_logits)
        self.reduce_states()
        if attention:
            self.signals.observe("attention", self.attention.reduce)

    @torch.no_grad()
    def finish(self) -> None:
        """Reduce what is pending; forget what belongs to a step without a token."""
        if self.untied is None:
            self._confirm()
        if self.untied is not None:
            self._forget()
        self._forget_forward()
        self._observing_forward = False
        if self.input_ids is not None:
            self.signals.observe("logits", self._reduce_logits)
        self.signals.observe("hidden", self.hidden.reduce)
        self.signals.observe("attention", self.attention.finish)
        if self.encoder is not None:
            self.signals.observe("cross_attention", self.cross_attention.finish)
            self.encoder.release()
        self.finish_watch()
        # It refers to this run: without the cycle, the run's memory is free as soon as it ends.
        self._wrapped.clear()
        if self.prefill is not None:
            self.prefill.release()
        self.signals.observe("prompt", self._refuse_continued)
        self._memory.give_back()

    def _refuse_continued(self) -> None:
        if self._cached is not None and int(self._cached) > 0:
            self.prefill = None
            raise Unobservable(_CONTINUED)

    def _tie(self, tie: Callable[..., None], *args: Any) -> None:
        """Call ``tie``, without which no token is known to be that of a forward pass."""
        with self.signals.timed():
            try:
                tie(*args)
            except Exception as error:
                self.signals.fail("tokens", error)
                self.untie(self.signals.unavailable["tokens"])

    def _confirm(self) -> None:
        """Untie what turns out not to be tied, now that the device may be waited for."""
        if self._chunks is not None and not self._chunks.began_empty():
            self.untie("chunked prefill that continues a cache")

    def _forget(self) -> None:
        self.logits = LogitsReducer(self.plan.top_k)
        self.hidden = HiddenReducer()
        self.attention = AttentionReducer()
        self.cross_attention = AttentionReducer(keys_per_step=0)
        self.prefill = None
        if self.encoder is not None:
            self.encoder.forget()


def _prompt_unobservable(
    input_ids: Tensor | None, cached: int | Tensor, plan: CapturePlan
) -> str | None:
    if input_ids is None:
        return "the prompt was given as embeddings"
    if isinstance(cached, int) and cached > 0:
        return _CONTINUED
    length = input_ids.shape[1]
    if length > plan.prompt_max_tokens:
        return f"prompt of {length} tokens; the limit is {plan.prompt_max_tokens}"
    if length < 2:
        return "prompt of fewer than 2 tokens"
    return None
