"""What a run has reduced so far, brought to the host while the run goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from corevital.capture.chunk import Chunk
from corevital.capture.columns import RunColumns, collect
from corevital.capture.prefill import Prefill
from corevital.capture.run import GenerationRun
from corevital.capture.transfer import PendingCopy


class HostCopies:
    """Copies of tensors that do not change any more; each is copied once."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Tensor, PendingCopy]] = {}
        self._used: dict[int, tuple[Tensor, PendingCopy]] = {}

    def of(self, tensor: Tensor) -> PendingCopy:
        """The copy of ``tensor``, begun now if it is new."""
        place = id(tensor)
        known = self._used.get(place) or self._known.get(place) or (tensor, PendingCopy(tensor))
        self._used[place] = known
        return known[1]

    def forget_unused(self) -> None:
        """Let go of what was not asked for since the last time: it is part of another by now."""
        self._known, self._used = self._used, {}


class Snapshot:
    """A run as it was at one step; what is pending in its reducers is not part of it.

    ``layers`` says whether all layers are wanted, with attention and prompt, or only what every
    score needs.
    """

    def __init__(self, run: GenerationRun, copies: HostCopies, *, layers: bool) -> None:
        self._copies = copies
        self._begun: list[PendingCopy] = []
        self._run = seen = copy.copy(run)
        seen.token_times_ns = run.token_times_ns.copy()
        if run.input_ids is not None:
            # Not to be kept: the next step has another.
            newest = PendingCopy(run.input_ids)
            self._begun.append(newest)
            seen.input_ids = newest.tensor
        seen.prompt_mask = None if run.prompt_mask is None else self._host(run.prompt_mask)
        seen.logits = copy.copy(run.logits)
        seen.logits.chunks = self._all(run.logits.chunks)
        seen.hidden = copy.copy(run.hidden)
        seen.hidden.chunks = self._chunks(run.hidden.chunks)
        seen.hidden.last_layer_cosines = self._all(run.hidden.last_layer_cosines)
        seen.hidden.lag_cosines = []
        seen.attention = copy.copy(run.attention)
        seen.attention.chunks = self._chunks(run.attention.chunks) if layers else []
        seen.attention.previous_token = self._chunks(run.attention.previous_token) if layers else []
        # Of an encoder-decoder, only what the decoder's own steps say.
        seen.cross_attention = copy.copy(run.cross_attention)
        seen.cross_attention.chunks = []
        seen.encoder = None
        prefill = run.certain_prefill
        seen.prefill = self._prefill(prefill) if layers and prefill is not None else None
        copies.forget_unused()

    @property
    def arrived(self) -> bool:
        """Whether everything is on the host; never waits."""
        return all(begun.arrived for begun in self._begun)

    def columns(self) -> RunColumns | None:
        """The columns so far, to be read once they have arrived."""
        return collect(self._run)

    def _prefill(self, prefill: Prefill) -> Prefill:
        seen = copy.copy(prefill)
        seen.valid = self._host(prefill.valid)
        seen.transformation = copy.copy(prefill.transformation)
        seen.transformation.by_layer = self._by_layer(prefill.transformation.by_layer)
        seen.attention_maps = copy.copy(prefill.attention_maps)
        seen.attention_maps.basin = self._by_layer(prefill.attention_maps.basin)
        seen.attention_maps.sparse = []
        if prefill.surprisal is not None and prefill.surprisal_error is not None:
            seen.surprisal = self._host(prefill.surprisal)
            seen.surprisal_error = self._host(prefill.surprisal_error)
        return seen

    def _host(self, tensor: Tensor) -> Tensor:
        begun = self._copies.of(tensor)
        self._begun.append(begun)
        return begun.tensor

    def _all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return [self._host(tensor) for tensor in tensors]

    def _chunks(self, chunks: Sequence[Chunk]) -> list[Chunk]:
        return [replace(chunk, statistics=self._host(chunk.statistics)) for chunk in chunks]

    def _by_layer(self, tensors: dict[int, Tensor]) -> dict[int, Tensor]:
        return {position: self._host(tensor) for position, tensor in tensors.items()}
