"""Observes a model's own ``generate``, whose rows are the codebooks of sequences of audio."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from corevital.capture.layers import DecoderLayers, EncoderLayers
from corevital.capture.plan import CapturePlan
from corevital.capture.run import GenerationRun
from corevital.capture.unobservable import Unobservable

_OTHER_ROWS: Final = "the rows of the forward passes are not those of the sequences"


class CodebookRun(GenerationRun):
    """One call of a ``generate`` that makes audio and calls the loop over tokens itself.

    The loop's batch has a row for each codebook of each prompt, one prompt after the other. The
    decoder embeds the codebooks of a prompt together: it has one row of hidden states for them, and
    gives a row of logits for each. With classifier-free guidance the forward passes have as many
    unconditional rows behind the others; they belong to no sequence. Copet et al., Simple and
    Controllable Music Generation (2023).
    """

    def __init__(
        self,
        model: nn.Module,
        layers: DecoderLayers | None,
        plan: CapturePlan,
        *,
        codebooks: int,
        guided: bool,
        encoder_layers: EncoderLayers | None = None,
    ) -> None:
        super().__init__(model, layers, plan, encoder_layers=encoder_layers)
        self._codebooks = codebooks
        self._copies = 2 if guided else 1
        self._given_logits: Tensor | None = None
        self._vocabulary = 0

    def state_rows(self, rows: int) -> NDArray[np.int64]:
        """The row ``[B]`` of the hidden states that each of so many sequences has."""
        return np.arange(rows) // self._codebooks

    def _given_rows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """What the decoder is given has other rows than its layers."""

    def _decoder_starts(self, kwargs: dict[str, Any]) -> None:
        self.signals.observe("cross_attention", self._begin_cross_attention, kwargs)

    def _begin_prompt(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.encoder is None:
            self.signals.unavailable.setdefault("prompt", "the prompt is made of codebooks")
        else:
            super()._begin_prompt(args, kwargs)

    def _keep_logits(self, output: Any) -> None:
        self._given_logits = output.logits

    def token_chosen(self, input_ids: Tensor) -> None:
        """Each codebook has a token more; ``input_ids`` ``[B, prompt + steps]`` ends with it."""
        self.signals.observe("logits", self._add_logits, input_ids.shape[0])
        super().token_chosen(input_ids)

    def _add_logits(self, rows: int) -> None:
        logits, self._given_logits = self._given_logits, None
        if logits is None or logits.shape[0] != rows * self._copies:
            raise Unobservable(_OTHER_ROWS)
        self._vocabulary = logits.shape[2]
        self.logits.add(logits[:rows])

    def _chosen(self) -> Tensor:
        # A row that has ended is padded with a code that has no logit; on an accelerator, a place
        # that there is not would end the process.
        return super()._chosen().clamp(max=self._vocabulary - 1)

    def lengths(self, token_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Steps of each sequence, ``[B]``, before what it is padded with."""
        if not self._vocabulary:
            return np.full(*token_ids.shape)
        padding = token_ids >= self._vocabulary
        before: NDArray[np.int64] = padding.argmax(1)
        before[~padding.any(1)] = token_ids.shape[1]
        return before

    @torch.no_grad()
    def finish(self) -> None:
        """Find the rows that belong to sequences."""
        super().finish()
        self._given_logits = None
        if self.input_ids is not None:
            rows = self.input_ids.shape[0]
            self._must_be_of(rows * self._copies // self._codebooks)

    def _must_be_of(self, forward_rows: int) -> None:
        """Drop everything if it was not seen in so many rows."""
        seen = (*self.hidden.chunks, *self.attention.chunks, *self.cross_attention.chunks)
        if any(chunk.statistics.shape[3] != forward_rows for chunk in seen):
            self.untie(_OTHER_ROWS)
            self._forget()
        if self.encoder is not None and self.encoder.rows == forward_rows:
            # It was given the unconditional rows too.
            self.encoder.rows = forward_rows // self._copies
