"""Per-layer statistics of the newest token's hidden state."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import MOST_STEPS, Chunk, bytes_together, steps_together
from corevital.capture.lags import LagCosines
from corevital.capture.run_memory import RunMemory
from corevital.capture.step_rows import StepRows
from corevital.capture.transfer import moved

CLAMP: Final = 1e6


def hidden_statistics(states: Tensor, scratch: Tensor | None = None) -> Tensor:
    """Statistics of hidden states over their last dimension.

    Args:
        states: ``[..., D]``, float32, D at least 2.
        scratch: memory of the shape of ``states``, to spare an allocation.

    Returns:
        ``[6, ...]``: mean, standard deviation (unbiased), L2 norm and largest absolute value, all
        of the states clamped to +-1e6, then the fraction of elements clamped and 1.0 where any
        element was NaN or Inf before clamping.
    """
    # Not of the absolute values: that would write them all.
    peak = torch.maximum(states.amax(-1), -states.amin(-1))
    if _known_within_range(peak):
        clamped, clip_fraction = states, torch.zeros_like(peak)
    else:
        clamped = states.clamp(-CLAMP, CLAMP)
        clip_fraction = (states.abs() > CLAMP).float().mean(-1)
    mean = clamped.mean(-1)
    norm = torch.linalg.vector_norm(clamped, dim=-1)
    # torch.std_mean takes thirty times as long on a CPU.
    centred = torch.sub(clamped, mean.unsqueeze(-1), out=scratch)
    std = torch.linalg.vector_norm(centred, dim=-1) / (states.shape[-1] - 1) ** 0.5
    non_finite = (~torch.isfinite(peak)).float()
    return torch.stack((mean, std, norm, peak.clamp(max=CLAMP), clip_fraction, non_finite))


def _known_within_range(peak: Tensor) -> bool:
    """Whether nothing is to be clamped; on an accelerator, asking would mean waiting."""
    return peak.device.type == "cpu" and bool((peak <= CLAMP).all())


def successive_cosines(states: Tensor) -> Tensor:
    """Cosines ``[n - 1, ...]`` of each of ``[n, ..., D]`` to the one before; NaN of zeros."""
    norms = torch.linalg.vector_norm(states, dim=-1)
    cosines: Tensor = torch.linalg.vecdot(states[1:], states[:-1]) / (norms[1:] * norms[:-1])
    return cosines


class HiddenReducer:
    """Collects the newest token's states of all layers, and reduces several steps together.

    Attributes:
        chunks: what has been reduced.
        last_layer_cosines: ``[n, B]`` for every chunk: cosine of the last layer's state to that of
            the step before, NaN where there is none.
        lag_cosines: ``[n, B, LAGS]``, float16, for every chunk: the same to each of the steps
            before.
    """

    def __init__(self, most_steps: int = MOST_STEPS, memory: RunMemory | None = None) -> None:
        self._memory = memory or RunMemory()
        self._steps_memory = self._memory.for_steps()
        self._most_steps = most_steps
        self._steps: list[int] = []
        self._layout: tuple[tuple[int, ...], torch.Size] | None = None
        self._states: StepRows | None = None
        self._previous_last: Tensor | None = None
        self.chunks: list[Chunk] = []
        self.last_layer_cosines: list[Tensor] = []
        self._lags = LagCosines()
        self.lag_cosines: list[Tensor] = []

    def add(self, step: int, states: dict[int, Tensor]) -> None:
        """Add one step: ``states`` maps layer position to ``[B, 1, D]``, in layer order."""
        newest = list(states.values())
        layout = (tuple(states), newest[-1].shape)
        if self._states is None or layout != self._layout:
            self.reduce()
            room = steps_together(4 * len(newest) * newest[-1].numel(), self._most_steps)
            self._states = StepRows(self._steps_memory, room, newest, torch.float32)
            self._layout = layout
        self._states.put(len(self._steps), newest)
        self._steps.append(step)
        if len(self._steps) == len(self._states):
            self.reduce()

    def reorder(self, rows: Tensor) -> None:
        """Row ``i`` of the next step follows row ``rows[i]`` ``[B]`` of those before."""
        self.reduce()
        if self._previous_last is not None:
            rows = moved(rows, self._previous_last.device)
            self._previous_last = self._previous_last.index_select(1, rows)
            self._lags.reorder(rows)

    @unaffected_by_autocast
    def reduce(self) -> None:
        """Reduce the pending steps to a chunk."""
        if self._layout is None or self._states is None or not self._steps:
            return
        positions, (rows, _, width) = self._layout
        steps = len(self._steps)
        states = self._states.rows[:steps].view(steps, len(positions), rows, width)
        last = states[:, -1]
        previous = self._previous_last
        if previous is None:
            previous = torch.full_like(last[:1], torch.nan)
        consecutive = successive_cosines(torch.cat((previous, last)))
        lags = self._lags.of(last).to(torch.float16)
        self.chunks.append(Chunk(tuple(self._steps), positions, self._statistics(states)))
        self.last_layer_cosines.append(consecutive)
        self.lag_cosines.append(lags)
        self._previous_last = last[-1:].clone()
        self._steps.clear()

    def _statistics(self, states: Tensor) -> Tensor:
        """``hidden_statistics`` ``[6, n, l, B]`` of states ``[n, l, B, D]``."""
        together = steps_together(4 * states[0].numel(), len(states), bytes_together(states.device))
        statistics = []
        for part in states.split(together):
            centred = self._memory.results.tensor(part.shape, part.dtype, part.device)
            statistics.append(hidden_statistics(part, centred))
        return statistics[0] if len(statistics) == 1 else torch.cat(statistics, dim=1)
