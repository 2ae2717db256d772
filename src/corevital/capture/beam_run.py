"""Observes beam search: many rows run at once, and what is returned went along some of them."""

from __future__ import annotations

import time
from typing import Any, Final

import torch
from torch import Tensor, nn

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.beam_paths import BeamPaths
from corevital.capture.cache import newest_key
from corevital.capture.chunked_prefill import ChunkedPrefill
from corevital.capture.hidden import HiddenReducer
from corevital.capture.layers import DecoderLayers, EncoderLayers
from corevital.capture.logits import distribution_statistics, surprisal
from corevital.capture.plan import CapturePlan
from corevital.capture.prefix_hash import prefix_hashes
from corevital.capture.run import GenerationRun
from corevital.capture.transfer import moved

_NO_ROWS: Final = "the beams of the forward passes are not known"
_NOT_RETURNED: Final = "beam search ended before it chose its sequences"


class BeamRun(GenerationRun):
    """One call of ``generate`` with beam search or beam sampling.

    A forward pass runs over ``beams`` rows for each of the ``groups``, the prompts of the batch.
    Each row is known by its tokens so far: a logits processor sees them after the forward pass,
    and the stopping criteria see each candidate to be kept, a row and one token more. Of both only
    hashes are kept. So the returned sequences tell, token by token, which row they went along:
    rows of a group with the same tokens have the same values.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: DecoderLayers | None,
        plan: CapturePlan,
        beams: int,
        chunks: ChunkedPrefill | None = None,
        encoder_layers: EncoderLayers | None = None,
    ) -> None:
        super().__init__(model, layers, plan, chunks, encoder_layers)
        self.hidden = HiddenReducer(most_steps=1, memory=self._memory)
        self.beams = beams
        self.paths: BeamPaths | None = None
        self._prompt_length: int | None = None
        self._row_hashes: list[Tensor] = []
        self._candidate_hashes: list[Tensor] = []
        self._surprisal: list[Tensor] = []
        self._distributions: list[Tensor] = []
        self._logits: Tensor | None = None
        self._returned: Tensor | None = None

    @property
    def prompt_length(self) -> int:
        """Positions before the first generated token."""
        return self._prompt_length or 0

    def _begin_attention(self, kwargs: dict[str, Any]) -> None:
        # Between the steps the rows of the cache change places.
        continues = self._chunks is not None and self.steps == 0
        newest = newest_key(kwargs.get("past_key_values"))
        self.attention.begin_step(append_only=False, newest_key=newest, continues=continues)

    def _add_step(self, output: Any, step: int) -> None:
        """Take what needs no step before; the rest waits until the rows are known."""
        self.signals.observe("logits", self._keep_logits, output)
        self.signals.observe("attention", self.attention.end_step, step)
        if self.encoder is not None:
            self.signals.observe("cross_attention", self.cross_attention.end_step, step)
        if self._reading_prompt is not None:
            self.signals.observe("prompt", self._read_prompt, self._reading_prompt, output)
            self._reading_prompt = None

    def _keep_logits(self, output: Any) -> None:
        self._logits = output.logits[:, -1:].clone()

    def rows_known(self, input_ids: Tensor) -> None:
        """After a forward pass: its rows are ``input_ids`` ``[groups * beams, prompt + step]``."""
        if self.untied is None and len(self._row_hashes) != self.steps:
            self.untie(_NO_ROWS)
        if self.untied is None:
            self._tie(self._keep_rows, input_ids)

    def _keep_rows(self, input_ids: Tensor) -> None:
        if self._prompt_length is None:
            self._prompt_length = int(input_ids.shape[1])
        hashes = self._hashes(input_ids)[:, -2:].unflatten(0, (-1, self.beams))
        step = self.steps
        if self._states:
            self.signals.observe("hidden", self._add_states_of, hashes, step)
        self._row_hashes.append(hashes[..., -1])

    def _hashes(self, input_ids: Tensor) -> Tensor:
        """``[rows, step + 1]``: of the generated tokens' prefixes."""
        return prefix_hashes(input_ids[:, self.prompt_length :])

    def _add_states_of(self, hashes: Tensor, step: int) -> None:
        if step > 0:
            self.hidden.reorder(self._parents(hashes[..., 0]))
        self._add_states(step)

    def _parents(self, prefixes: Tensor) -> Tensor:
        """Rows ``[groups * n]`` of the step before with these ``prefixes`` ``[groups, n]``."""
        same = prefixes.unsqueeze(-1) == self._row_hashes[-1].unsqueeze(-2)
        group = torch.arange(len(prefixes), device=prefixes.device).unsqueeze(-1)
        # Of a Boolean there is no argmax on every device.
        return (same.to(torch.uint8).argmax(-1) + group * self.beams).flatten()

    def token_chosen(self, input_ids: Tensor) -> None:
        """The candidates of a step are ``input_ids`` ``[groups * n, prompt + step + 1]``."""
        step = self.steps
        self.token_times_ns.append(time.perf_counter_ns())
        self._token_due = False
        self._reading_prompt = None
        if self.untied is None and len(self._row_hashes) != step + 1:
            self.untie(_NO_ROWS)
        if self.untied is None:
            self._tie(self._keep_candidates, input_ids)

    def _keep_candidates(self, input_ids: Tensor) -> None:
        groups = len(self._row_hashes[-1])
        hashes = self._hashes(input_ids)[:, -2:].unflatten(0, (groups, -1))
        self._candidate_hashes.append(hashes[..., -1])
        if self._logits is not None:
            self.signals.observe("logits", self._reduce_step, input_ids[:, -1], hashes[..., 0])

    @unaffected_by_autocast
    def _reduce_step(self, token_ids: Tensor, prefixes: Tensor) -> None:
        assert self._logits is not None
        logits, self._logits = self._logits[:, 0].float(), None
        *distribution, log_normalizer = distribution_statistics(logits, self.plan.top_k)
        rows = moved(self._parents(prefixes), logits.device)
        chosen = logits[rows, moved(token_ids, logits.device)]
        bits = surprisal(chosen, log_normalizer[rows])
        self._distributions.append(torch.stack(distribution))
        self._surprisal.append(bits.view(prefixes.shape))

    def settle(self, returned: Tensor | None, end_counter_ns: int) -> None:
        """Keep the sequences, which tell which rows count."""
        self._returned = returned

    @torch.no_grad()
    def finish(self) -> None:
        """Find the rows of the returned sequences."""
        super().finish()
        self._logits = None
        if self._returned is None or self._prompt_length is None or not self.steps:
            if self.steps:
                self.untie(_NOT_RETURNED)
            return
        self.input_ids = self._returned
        generated = self._returned.shape[1] - self.prompt_length
        groups = len(self._row_hashes[0]) if self._row_hashes else 1
        if not 0 <= generated <= self.steps or len(self._returned) % groups:
            self.untie(_NO_ROWS)
        if self.untied is None:
            self.paths = BeamPaths.of(
                self._returned[:, self.prompt_length :],
                torch.stack(self._row_hashes[: self.steps]),
                torch.stack(self._candidate_hashes),
            )

    def logit_columns(self) -> Tensor | None:
        """Entropy, margin and top-k mass ``[3, S, rows]`` of the rows, on the device."""
        return torch.stack(self._distributions, dim=1) if self._distributions else None

    def candidate_surprisal(self) -> Tensor | None:
        """Surprisal ``[S, groups, n]`` of the candidates, on the device."""
        return torch.stack(self._surprisal) if self._surprisal else None
