"""Contrastive search as an application writes it: a custom loop over ``custom_generate``.

Su et al., A Contrastive Framework for Neural Text Generation (2022).
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

TRIED = 4
_ALPHA = 0.6
_END = 1


class _Model(Protocol):
    """Reads the newest tokens of some rows."""

    def read(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Logits ``[rows, V]`` of the newest token, and last hidden states ``[rows, Q, D]``."""

    def repeat(self, times: int) -> None:
        """Each row becomes several."""

    def select(self, rows: Tensor) -> None:
        """Only these rows go on."""


class Cached:
    """Of a decoder-only model, with a cache."""

    def __init__(self, model: Any, attention_mask: Tensor) -> None:
        self._model, self._mask = model, attention_mask
        self._cache = DynamicCache(config=model.config)

    def read(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        new = token_ids.shape[1] + self._cache.get_seq_length() - self._mask.shape[1]
        self._mask = torch.cat((self._mask, self._mask.new_ones(len(self._mask), new)), dim=-1)
        outputs = self._model(
            token_ids,
            attention_mask=self._mask,
            position_ids=(self._mask.cumsum(-1) - 1).clamp(min=0)[:, -token_ids.shape[1] :],
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=True,
        )
        return outputs.logits[:, -1], outputs.hidden_states[-1]

    def repeat(self, times: int) -> None:
        self._cache.batch_repeat_interleave(times)
        self._mask = self._mask.repeat_interleave(times, 0)

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._mask = self._mask[rows]


class Uncached:
    """Of a decoder-only model, reading the whole text each time."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._text: Tensor | None = None

    def read(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        if self._text is not None:
            token_ids = torch.cat((self._text, token_ids), dim=-1)
        self._text = token_ids
        outputs = self._model(token_ids, output_hidden_states=True)
        return outputs.logits[:, -1], outputs.hidden_states[-1]

    def repeat(self, times: int) -> None:
        assert self._text is not None
        self._text = self._text.repeat_interleave(times, 0)

    def select(self, rows: Tensor) -> None:
        assert self._text is not None
        self._text = self._text[rows]


class EncoderDecoder:
    """Of an encoder-decoder, with a cache."""

    def __init__(self, model: Any, encoder_outputs: Any, attention_mask: Tensor | None) -> None:
        self._model, self._encoded, self._mask = model, encoder_outputs, attention_mask
        self._cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def read(self, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        outputs = self._model(
            encoder_outputs=self._encoded,
            attention_mask=self._mask,
            decoder_input_ids=token_ids,
            past_key_values=self._cache,
            use_cache=True,
            output_hidden_states=True,
        )
        return outputs.logits[:, -1], outputs.decoder_hidden_states[-1]

    def repeat(self, times: int) -> None:
        self._cache.batch_repeat_interleave(times)
        self._pick(lambda given: given.repeat_interleave(times, 0))

    def select(self, rows: Tensor) -> None:
        self._cache.batch_select_indices(rows)
        self._pick(lambda given: given[rows])

    def _pick(self, picked: Any) -> None:
        states = picked(self._encoded.last_hidden_state)
        self._encoded = type(self._encoded)(last_hidden_state=states)
        self._mask = None if self._mask is None else picked(self._mask)


def search(model: _Model, input_ids: Tensor, stopping_criteria: Any, config: Any) -> Tensor:
    """Of the likeliest tokens, each time the one whose state is least like those before.

    Behind its end token, a sequence is padded while others go on; the end token of the tiny models
    is never chosen.
    """
    ended = torch.zeros_like(input_ids[:, :1], dtype=torch.bool)
    sequences = torch.arange(len(input_ids), device=input_ids.device) * TRIED
    logits, states = model.read(input_ids)
    while True:
        unending = logits.index_fill(-1, logits.new_tensor([_END], dtype=torch.long), -torch.inf)
        likely, candidates = unending.softmax(-1).topk(TRIED)
        model.repeat(TRIED)
        logits, newest = model.read(candidates.view(-1, 1))
        newest, before = newest[:, -1:], states.repeat_interleave(TRIED, 0)
        alike = torch.cosine_similarity(newest, before, dim=-1).amax(-1).view_as(likely)
        best = ((1 - _ALPHA) * likely - _ALPHA * alike).argmax(-1)
        rows = sequences + best
        model.select(rows)
        logits, states = logits[rows], torch.cat((states, newest[rows]), dim=1)
        chosen = candidates.gather(1, best[:, None]).masked_fill(ended, config.pad_token_id)
        ended |= chosen == config.eos_token_id
        input_ids = torch.cat((input_ids, chosen), dim=-1)
        if stopping_criteria(input_ids, None).all():
            return input_ids


def cached_search(
    model: Any, input_ids: Tensor, stopping_criteria: Any, generation_config: Any, **options: Any
) -> Tensor:
    """With a cache whose rows are repeated and selected."""
    mask = options.get("attention_mask")
    given = torch.ones_like(input_ids) if mask is None else mask
    return search(Cached(model, given), input_ids, stopping_criteria, generation_config)


def uncached_search(
    model: Any, input_ids: Tensor, stopping_criteria: Any, generation_config: Any, **_: Any
) -> Tensor:
    """Without a cache."""
    return search(Uncached(model), input_ids, stopping_criteria, generation_config)


def encoder_decoder_search(
    model: Any,
    input_ids: Tensor,
    stopping_criteria: Any,
    generation_config: Any,
    **options: Any,
) -> Tensor:
    """Of an encoder-decoder."""
    decoder = EncoderDecoder(model, options["encoder_outputs"], options.get("attention_mask"))
    return search(decoder, input_ids, stopping_criteria, generation_config)
