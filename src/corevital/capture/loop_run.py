"""Observes a decoding loop of the application's own, whose tokens show in what it returns."""

from __future__ import annotations

import time
from collections.abc import Set
from typing import Any, Final

import torch
from torch import Tensor, nn

from corevital.capture.cache import newest_key
from corevital.capture.forward_inputs import seen_positions
from corevital.capture.layers import DecoderLayers, EncoderLayers
from corevital.capture.plan import CapturePlan
from corevital.capture.run import GenerationRun
from corevital.capture.ties import Ties
from corevital.capture.transfer import moved
from corevital.capture.trial import Trial
from corevital.capture.unobservable import Unobservable

_NO_TOKEN: Final = -1
_NO_FORWARD: Final = "the custom loop did not run the model itself"
_NO_SEQUENCES: Final = "the custom loop returned no sequences that begin with the prompt"
_OTHER_FORWARDS: Final = "the custom loop's tokens are not those of one forward pass each"


class LoopRun(GenerationRun):
    """One call of ``generate`` with ``custom_generate``.

    Nothing is known of such a loop but its forward passes, what it asks its stopping criteria, and
    what it returns. It is observed if it made one forward pass for each token, in order, over the
    same rows: each was given, as its newest token, the one that the returned sequences have before
    the token in question, as long as they have not ended. The time of a token is when the stopping
    criteria were asked about it, if they were; else when the next forward pass began, or the loop
    ended.

    A forward pass may also try several tokens of each sequence, in a row each. The one that the
    stopping criteria are then asked about is the one that counts, and its row shows what is behind
    it. Contrastive search: Su et al., A Contrastive Framework for Neural Text Generation (2022).

    Another look for a token whose forward pass was there already is none of the loop's: it sees
    fewer positions, and not through the same cache. Contrastive decoding: Li et al., Contrastive
    Decoding: Open-ended Text Generation as Optimization (2023).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: DecoderLayers | None,
        plan: CapturePlan,
        prompt_length: int | None,
        end_tokens: Set[int] = frozenset(),
        encoder_layers: EncoderLayers | None = None,
    ) -> None:
        super().__init__(model, layers, plan, encoder_layers=encoder_layers)
        self._prompt_length = prompt_length
        self._sequences: int | None = None
        self._given: list[Tensor | None] = []
        self._tokens: list[Tensor] = []
        self._asked_ns: int | None = None
        self._trial: Trial | None = None
        self._end_tokens = end_tokens
        self._seen: int | None = None
        self._cache: int | None = None
        self._looks_again = False
        self._began_with_less = False
        self._returned: Tensor | None = None
        self._end_ns = 0

    @property
    def next_step(self) -> int:
        """The step of the token that the forward pass of now, or the next one, predicts."""
        return self.steps if self._trial is None else self.steps + 1

    def forward_starts(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The next forward pass begins, so the token of the one before is known, or being tried."""
        self._looks_again = False
        if self.untied is None:
            self._tie(self._keep_given, args, kwargs)
        if self._looks_again:
            self._observing_forward = False
            self.look_at_once()
        elif self.untied is None:
            super().forward_starts(args, kwargs)

    def _keep_given(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = self._given_ids(args, kwargs)
        # A copy, because the loop may write the next token into the same tensor.
        newest = None if ids is None or ids.dim() != 2 else ids[:, -1:].clone()
        if newest is None and (self._given or kwargs.get("inputs_embeds") is None):
            raise Unobservable(_OTHER_FORWARDS)
        seen = None if self.encoder is not None else seen_positions(args, kwargs)
        cache = kwargs.get("past_key_values")
        if self._token_due and newest is not None:
            if self._asked_ns is None and self._sees_less(seen, cache):
                self._looks_again = True
                return
            self._token_given(newest)
        elif self._given:
            raise Unobservable(_OTHER_FORWARDS)
        else:
            self._loop_begins_with(ids, seen, self._given_rows(args, kwargs))
        self._seen, self._cache = seen, None if cache is None else id(cache)
        if self._trial is None:
            self._given.append(newest)

    def _loop_begins_with(self, ids: Tensor | None, seen: int | None, rows: int | None) -> None:
        """The first forward pass is given ``ids`` ``[B, Q]``, or embeddings in so many rows."""
        if self._prompt_length is None and ids is not None:
            self._prompt_length = ids.shape[1]
        self._sequences = rows if ids is None else ids.shape[0]
        prompt = self._prompt_length
        self._began_with_less = seen is not None and prompt is not None and seen < prompt

    def _sees_less(self, seen: int | None, cache: Any) -> bool:
        """Whether a forward pass sees fewer positions than the one before, and by other means."""
        if seen is None or self._seen is None or seen >= self._seen:
            return False
        return cache is None or id(cache) != self._cache

    def _token_given(self, newest: Tensor) -> None:
        """The token after the forward pass before is that of ``newest`` ``[B, 1]``, or one of it.

        Raises:
            Unobservable: they are not of the rows that they should be of.
        """
        rows, sequences = newest.shape[0], self._sequences
        if self._trial is not None or not sequences or rows == 0 or rows % sequences:
            raise Unobservable(_OTHER_FORWARDS)
        if rows == sequences:
            self._chose(newest, time.perf_counter_ns())
        else:
            self._trial = Trial(newest, sequences)
            self._token_due = False

    def _chose(self, token_ids: Tensor, now_ns: int) -> None:
        """Tokens ``[B, 1]`` that seem to be those after the forward pass before."""
        asked_ns, self._asked_ns = self._asked_ns, None
        self.token_times_ns.append(now_ns if asked_ns is None else asked_ns)
        self._tokens.append(token_ids)
        self._token_known(token_ids)

    def _chosen(self) -> Tensor:
        none = self._tokens[0][:, :0]
        return torch.cat((none, *self._tokens[self.logits.reduced :]), dim=1)

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
            if self._trial is not None:
                self._tie(self._token_tried, self._trial, input_ids)

    def _token_tried(self, trial: Trial, input_ids: Tensor) -> None:
        """Of the tokens that were tried, it is the last of ``input_ids`` ``[B, prompt + steps]``.

        Raises:
            Unobservable: it is not asked about a token of each sequence.
        """
        if input_ids.shape[0] != self._sequences:
            raise Unobservable(_OTHER_FORWARDS)
        rows = trial.rows_of(input_ids[:, -1:])
        tokens = trial.tokens_of(rows)
        chosen = moved(input_ids[:, -1:], tokens.device)
        step = self.next_step
        self._given.append(torch.where(tokens == chosen, tokens, _NO_TOKEN))
        self._chose(tokens, time.perf_counter_ns())
        self._trial, self._states = None, trial.states_of(rows)
        if trial.logits is not None:
            self.signals.observe("logits", self.logits.add, trial.logits_of(rows))
        if self._states:
            self.signals.observe("hidden", self._add_states, step)
        self.signals.observe("attention", self.attention.choose_rows, rows)
        self.signals.observe("cross_attention", self.cross_attention.choose_rows, rows)
        self._token_due = True

    def _begin_attention(self, kwargs: dict[str, Any]) -> None:
        if self._trial is None:
            super()._begin_attention(kwargs)
        else:
            # Reduced at once, because the rows of the cache will change.
            newest = newest_key(kwargs.get("past_key_values"))
            self.attention.begin_step(append_only=False, newest_key=newest, undecided=True)

    def _begin_cross_attention(self, kwargs: dict[str, Any]) -> None:
        if self._trial is None:
            super()._begin_cross_attention(kwargs)
        else:
            self.cross_attention.begin_step(append_only=False, undecided=True)

    def _add_step(self, output: Any, step: int) -> None:
        """Take what the forward pass showed; of a trial, until it is known which rows count."""
        if self._trial is None:
            super()._add_step(output, step)
            return
        self.signals.observe("logits", self._keep_tried_logits, self._trial, output)
        # Or the application's graph would be kept alive until the next token.
        self._trial.states = {place: state.detach() for place, state in self._states.items()}
        self._states.clear()
        self.signals.observe("attention", self.attention.end_step, step)
        if self.encoder is not None:
            self.signals.observe("cross_attention", self.cross_attention.end_step, step)

    @staticmethod
    def _keep_tried_logits(trial: Trial, output: Any) -> None:
        # A copy, because logits processors write into what the model returned.
        trial.logits = output.logits[:, -1:].clone()

    def settle(self, returned: Tensor | None, end_counter_ns: int) -> None:
        """Keep the sequences, which tell whether the forward passes were those of their tokens."""
        self._returned, self._end_ns = returned, end_counter_ns

    def untie(self, reason: str) -> None:
        """Observe nothing any more: what was seen are not known to be tokens of a sequence."""
        super().untie(reason)
        self._trial = None
        self.input_ids = None

    @torch.no_grad()
    def finish(self) -> None:
        """Reduce what is pending; forget what belongs to a step without a token, or of no row."""
        super().finish()
        self.attention.forget_undecided()
        self.cross_attention.forget_undecided()

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
        # One forward pass more may have been for a token that was not kept; but where the first saw
        # only part of the prompt, it may be the second that was for the first token.
        one_more = 0 if self._began_with_less else 1
        if returned.shape[0] != self._sequences or not 0 <= len(self._given) - steps <= one_more:
            return _OTHER_FORWARDS
        if self.steps < steps:
            self._chose(returned[:, -1:], end_counter_ns)
        ended = self._ended(returned[:, prompt:])
        ties = Ties()
        for place, given in enumerate(self._given, -1):
            if given is not None:
                accepted = moved(returned[:, prompt + place, None], given.device)
                if place > 0:
                    # What pads a sequence need not be what the loop went on with.
                    accepted = torch.where(moved(ended[:, place], given.device), given, accepted)
                ties.add(given, accepted)
        if not ties.hold():
            return _OTHER_FORWARDS
        self.input_ids = returned
        return None

    def _ended(self, token_ids: Tensor) -> Tensor:
        """Whether a sequence had ended before each of its tokens ``[B, S]``: ``[B, S, 1]``."""
        ends = torch.zeros_like(token_ids, dtype=torch.bool)
        for end in self._end_tokens:
            ends |= token_ids == end
        return (ends.cumsum(-1) > ends.long()).unsqueeze(-1)
