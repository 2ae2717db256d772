"""Per-layer statistics of the newest token's hidden state."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from corevital.capture.autocast import unaffected_by_autocast
from corevital.capture.chunk import MOST_STEPS, Chunk, bytes_together, steps_together
from corevital.capture.lags import LagCosines
from corevital.capture.scratch import Scratch

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


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between vectors, over the last dimension; NaN for a zero vector."""
    norms: Tensor = torch.linalg.vector_norm(a, dim=-1) * torch.linalg.vector_norm(b, dim=-1)
    dot: Tensor = torch.linalg.vecdot(a, b)
    return dot / norms


class HiddenReducer:
    """Collects the newest token's states of all layers, and reduces several steps together.

    Attributes:
        chunks: what has been reduced.
        last_layer_cosines: ``[n, B]`` for every chunk: cosine of the last layer's state to that of
            the step before, NaN where there is none.
        lag_cosines: ``[n, B, LAGS]``, float16, for every chunk: the same to each of the steps
            before.
    """

    def __init__(self, most_steps: int = MOST_STEPS) -> None:
        self._most_steps = most_steps
        self._steps: list[int] = []
        self._positions: tuple[int, ...] = ()
        self._states: list[Tensor] = []
        self._steps_together = 1
        self._several_devices = False
        self._previous_last: Tensor | None = None
        self._memory = Scratch()
        self._centred = Scratch()
        self.chunks: list[Chunk] = []
        self.last_layer_cosines: list[Tensor] = []
        self._lags = LagCosines()
        self.lag_cosines: list[Tensor] = []

    def add(self, step: int, states: dict[int, Tensor]) -> None:
        """Add one step: ``states`` maps layer position to ``[B, 1, D]``, in layer order."""
        positions = tuple(states)
        if positions != self._positions:
            self.reduce()
            self._positions = positions
            per_step = 4 * sum(state.numel() for state in states.values())
            self._steps_together = steps_together(per_step, self._most_steps)
            self._several_devices = len({state.device for state in states.values()}) > 1
        self._steps.append(step)
        self._states += states.values()
        if len(self._steps) == self._steps_together:
            self.reduce()

    def reorder(self, rows: Tensor) -> None:
        """Row ``i`` of the next step follows row ``rows[i]`` ``[B]`` of those before."""
        self.reduce()
        if self._previous_last is not None:
            rows = rows.to(self._previous_last.device, non_blocking=True)
            self._previous_last = self._previous_last.index_select(1, rows)
            self._lags.reorder(rows)

    @unaffected_by_autocast
    def reduce(self) -> None:
        """Reduce the pending steps to a chunk."""
        if not self._steps:
            return
        if self._several_devices:
            device = self._states[-1].device
            self._states = [state.to(device, non_blocking=True) for state in self._states]
        layers = len(self._positions)
        last = torch.cat(self._states[layers - 1 :: layers], dim=1).transpose(0, 1).float()
        previous = self._previous_last
        if previous is None:
            previous = torch.full_like(last[:1], torch.nan)
        consecutive = cosine(last, torch.cat((previous, last[:-1])))
        lags = self._lags.of(last).to(torch.float16)
        self.chunks.append(Chunk(tuple(self._steps), self._positions, self._statistics()))
        self.last_layer_cosines.append(consecutive)
        self.lag_cosines.append(lags)
        self._previous_last = last[-1:].clone()
        self._steps.clear()
        self._states.clear()

    def _statistics(self) -> Tensor:
        """``hidden_statistics`` ``[6, n, l, B]`` of the pending states."""
        steps, layers, last = len(self._steps), len(self._positions), self._states[-1]
        together = steps_together(4 * layers * last.numel(), steps, bytes_together(last.device))
        statistics = []
        for start in range(0, steps, together):
            part = self._states[start * layers : (start + together) * layers]
            states = self._together(part)
            memory = self._centred.tensor(states.shape, states.dtype, states.device)
            statistics.append(hidden_statistics(states, memory))
        joined = statistics[0] if len(statistics) == 1 else torch.cat(statistics, dim=1)
        return joined.view(len(joined), steps, layers, last.shape[0])

    def _together(self, states: list[Tensor]) -> Tensor:
        """States ``[B, 1, D]`` one behind the other, ``[n, B, D]`` in float32."""
        rows, _, width = states[0].shape
        shape = (len(states) * rows, 1, width)
        joined = self._memory.tensor(shape, torch.float32, states[0].device)
        if all(state.dtype == torch.float32 for state in states):
            torch.cat(states, out=joined)
        else:
            joined.copy_(torch.cat(states))
        return joined.view(len(states), rows, width)
