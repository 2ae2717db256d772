"""Prompt telemetry of one run, gathered while the prompt passes through the model."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from corevital.capture.attention import AttentionCall
from corevital.capture.prompt import LayerTransformation, PromptAttention
from corevital.capture.prompt_surprisal import needs_no_other_process, prompt_surprisal
from corevital.capture.run_memory import RunMemory
from corevital.capture.transfer import moved
from corevital.capture.unobservable import Unobservable


class Prefill:
    """The first forward pass of a run, over the whole prompt and perhaps candidates behind it.

    Args:
        input_ids: ``[B, P]``.
        mask: ``[B, P]``, 0 at padding; ``None`` without any.
        candidates: tokens behind the prompt that are none of it.
        answers: how many rows have each prompt, one behind the other; it is observed once.
        memory: where to compute.

    Attributes:
        answers: as given. In what follows, ``N`` is ``B / answers``.
        valid: ``[N, P]`` boolean, False at padding.
        surprisal: ``[N, P - 1]`` in bits; ``None`` where the output head is not known, or not in
            this process.
        surprisal_error: largest difference between the logits that surprisal was computed from and
            the model's own, at the last position.
    """

    def __init__(
        self,
        input_ids: Tensor,
        mask: Tensor | None,
        candidates: int = 0,
        answers: int = 1,
        memory: RunMemory | None = None,
    ) -> None:
        self.answers = answers
        self._candidates = candidates
        self._input_ids = self._prompt_of(input_ids)
        everything = torch.ones_like(self._input_ids, dtype=torch.bool)
        self.valid = everything if mask is None else mask[::answers].bool()
        self.attention_maps = PromptAttention(self.valid, answers=answers, memory=memory)
        self.transformation = LayerTransformation(self.valid)
        self.surprisal: Tensor | None = None
        self.surprisal_error: Tensor | None = None
        self._newest_states: weakref.ref[Tensor] | None = None
        self._last_states: Tensor | None = None

    def layer(self, position: int, args: tuple[Any, ...], states: Tensor) -> None:
        """One layer's output ``[B, P, D]``.

        Raises:
            Unobservable: the layer has more or fewer positions than the prompt has tokens.
        """
        self._must_be_the_prompt(states.shape[1])
        given = args[0] if args else None
        newest = None if self._newest_states is None else self._newest_states()
        if not isinstance(given, Tensor) or given is newest:
            given = None
        # Held here, it would keep the rows of all answers alive.
        self._newest_states = weakref.ref(states)
        before = None if given is None else self._prompt_of(given)
        self.transformation.observe(position, before, self._prompt_of(states))

    def last_layer(self, position: int, states: Tensor) -> None:
        """The decoder's output ``[B, P, D]``, after the final norm.

        Raises:
            Unobservable: it has more or fewer positions than the prompt has tokens.
        """
        self._must_be_the_prompt(states.shape[1])
        states = self._prompt_of(states)
        self.transformation.observe(position, None, states)
        self._last_states = states

    def attention(self, call: AttentionCall) -> None:
        """One layer's attention over the prompt; not of layers that only the newest token reaches.

        Raises:
            Unobservable: it has more or fewer queries than the prompt has tokens.
        """
        queries = call.rows.shape[2]
        if queries == 1:
            return
        self._must_be_the_prompt(queries)
        self.attention_maps.observe(self._prompt_of_call(call))

    def _prompt_of(self, positions: Tensor) -> Tensor:
        """``[N, P, ...]`` of ``[B, Q, ...]``; no token of the prompt sees any candidate."""
        prompt = positions[:: self.answers, : positions.shape[1] - self._candidates]
        # A copy where a view would keep the rows of all answers alive.
        return prompt.clone() if self.answers > 1 else prompt

    def _prompt_of_call(self, call: AttentionCall) -> AttentionCall:
        if not self._candidates:
            return call
        tokens = self.valid.shape[1]
        return call.taking(lambda rows: rows[:, :, :tokens])

    def _must_be_the_prompt(self, positions: int) -> None:
        positions -= self._candidates
        tokens = self.valid.shape[1]
        if positions != tokens:
            raise Unobservable(f"the layers see {positions} positions for {tokens} prompt tokens")

    def logits(self, model: nn.Module, logits: Tensor) -> None:
        """The model's own logits ``[B, 1 or P, V]``, which those for the surprisal must equal.

        Raises:
            Unobservable: they do not reach the prompt's last token, which candidates follow.
        """
        if logits.shape[1] <= self._candidates:
            raise Unobservable("the logits do not reach the prompt's last token")
        head, states = getattr(model, "get_output_embeddings", lambda: None)(), self._last_states
        if (
            states is not None
            and isinstance(head, nn.Module)
            and needs_no_other_process(head, states, logits.shape[-1])
        ):
            self.surprisal, newest = prompt_surprisal(states, head, self._input_ids)
            newest = moved(newest, logits.device)
            newest = newest.repeat_interleave(self.answers, dim=0)
            self.surprisal_error = (newest - logits[:, -1 - self._candidates].float()).abs().max()
        self.attention_maps.reduce()
        self.transformation.reduce()
        self.release()

    def release(self) -> None:
        """Let go of everything that has the size of the prompt's hidden states."""
        self._last_states = None
        self.attention_maps.release()
        self.transformation.release()
