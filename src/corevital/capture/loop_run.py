"""Observes a decoding loop of the application's own, whose tokens show in what it returns."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch import Tensor, nn

from corevital.capture.layers import DecoderLayers, EncoderLayers
from corevital.capture.plan import CapturePlan
from corevital.capture.run import GenerationRun
from corevital.capture.ties import Ties
from corevital.capture.unobservable import Unobservable

_NO_FORWARD: Final = "the custom loop did not run the model itself"
_NO_SEQUENCES: Final = "the custom loop returned no sequences that begin with the prompt"
_OTHER_FORWARDS: Final = "the custom loop's tokens are not those of one forward pass each"


class LoopRun(GenerationRun):
    """One call of ``generate`` with ``custom_generate``.

    Nothing is known of such a loop but its forward passes and what it returns. It is observed if it
    made one forward pass for each token, in order, over the same rows: each was given, as its
    newest token, the one that the returned sequences have before the token in question. The time
    of a token is when the stopping criteria were asked about it, if they were; else when the
    next forward pass began, or the loop ended.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: DecoderLayers | None,
        plan: CapturePlan,
        prompt_length: int | None,
        encoder_layers: EncoderLayers | None = None,
    ) -> None:
        super().__init__(model, layers, plan, encoder_layers=encoder_layers)
        self._prompt_length = prompt_length
        self._given: list[Tensor | None] = []
        self._tokens: list[Tensor] = []
        self._asked_ns: int | None = None
        self._returned: Tensor | None = None
        self._end_ns = 0

    def forward_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The next forward pass begins, so the token of the one before is known."""
        if self.untied is None:
            self._tie(self._keep_given, args, kwargs)
        if self.untied is None:
            super().forward_starts(args, kwargs)

    def _keep_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = self._given_ids(args, kwargs)
        # A copy, because the loop may write the next token into the same tensor.
        newest = None if ids is None or ids.dim() != 2 else ids[:, -1:].clone()
        if newest is None and (self._given or kwargs.get("inputs_embeds") is None):
            raise Unobservable(_OTHER_FORWARDS)
        if self._token_due and newest is not None:
            if newest.shape[0] != self._rows:
                raise Unobservable(_OTHER_FORWARDS)
            self._chose(newest, time.perf_counter_ns())
        elif self._prompt_length is None and ids is not None:
            self._prompt_length = ids.shape[1]
        self._given.append(newest)

    def _chose(self, token_ids: Tensor, now_ns: int) -> None:
        """Tokens ``[B, 1]`` that seem to be those after the forward pass before."""
        asked_ns, self._asked_ns = self._asked_ns, None
        self.token_times_ns.append(now_ns if asked_ns is None else asked_ns)
        self._tokens.append(token_ids)
        self._token_known(token_ids)

    def _reduce_logits(self) -> None:
        self.logits.reduce(torch.cat(self._tokens[self.logits.reduced :], dim=1).T)

    def forward_returns(self, output: Any) -> None:
        """The forward pass ends, perhaps with something else than logits."""
        logits = getattr(output, "logits", None)
        if self._observing_forward and not (isinstance(logits, Tensor) and logits.dim() == 3):
            self.untie("the custom loop's forward passes return no logits")
        super().forward_returns(output)

    def token_chosen(self, input_ids: Tensor) -> None:
        """The loop asks its stopping criteria, if it does, about a token that it has chosen."""
        if self._token_due:
            self._asked_ns = time.perf_counter_ns()

    def settle(self, returned: Tensor | None, end_counter_ns: int) -> None:
        """Keep the sequences, which tell whether the forward passes were those of their tokens."""
        self._returned, self._end_ns = returned, end_counter_ns

    def untie(self, reason: str) -> None:
        """Observe nothing any more: what was seen are not known to be tokens of a sequence."""
        super().untie(reason)
        self.input_ids = None

    def _confirm(self) -> None:
        reason = self._mismatch(self._returned, self._end_ns)
        if reason is not None:
            self.untie(reason)

    def _mismatch(self, returned: Tensor | None, end_counter_ns: int) -> str | None:
        if not self._given:
            return _NO_FORWARD
        prompt = self._prompt_length
        if returned is None or prompt is None or returned.shape[1] <= prompt:
            return _NO_SEQUENCES
        steps = returned.shape[1] - prompt
        # One forward pass more may have been for a token that was not kept.
        if returned.shape[0] != self._rows or len(self._given) - steps not in (0, 1):
            return _OTHER_FORWARDS
        if self.steps < steps:
            self._chose(returned[:, -1:], end_counter_ns)
        ties = Ties()
        for place, given in enumerate(self._given[:steps], prompt - 1):
            if given is not None:
                ties.add(given, returned[:, place : place + 1])
        if not ties.hold():
            return _OTHER_FORWARDS
        self.input_ids = returned
        return None
