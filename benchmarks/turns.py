"""A plain and an instrumented generation that take turns at every token, in one thread.

What a shared machine does to one of them for a second or more, it does to the other as well: the
ratio of two such runs differs by a fraction of what that of two runs after each other does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

import greenlet
import torch
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteria
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import AttentionInterface

Generate = Callable[..., torch.Tensor]

_CLASSES: Final = (
    GenerationMixin,
    PreTrainedModel,
    GradientCheckpointingLayer,
    AttentionInterface,
)
"""Whose attributes instrumentation replaces, and a generation looks up."""


class Patches:
    """What instrumentation puts into classes after this object is made, to be taken out a while."""

    def __init__(self) -> None:
        self._before = [dict(vars(owner)) for owner in _CLASSES]

    @contextmanager
    def removed(self) -> Iterator[None]:
        """Inside the block, the classes are as they were when this object was made."""
        found = [
            (owner, name, value, before.get(name))
            for owner, before in zip(_CLASSES, self._before, strict=True)
            for name, value in dict(vars(owner)).items()
            if before.get(name) is not value
        ]
        for owner, name, _, own in found:
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        try:
            yield
        finally:
            for owner, name, patched, _ in found:
                setattr(owner, name, patched)


class Side(StoppingCriteria):
    """One of the generations. It hands over when it has chosen a token.

    Attributes:
        seconds: of each turn: up to the first token, of each further token, and from the last one
            to the end.
        tokens: what was generated, when it has ended.
    """

    def __init__(self, generate: Generate, device: str) -> None:
        self.seconds: list[float] = []
        self.tokens = torch.empty(0)
        self._device = device
        self._started = 0.0
        self._random: torch.Tensor | None = None
        self._generation = greenlet.greenlet(lambda: self._run(generate))
        self._comparison = greenlet.getcurrent()

    @property
    def ended(self) -> bool:
        """Whether there is no turn left."""
        return bool(self._generation.dead)

    def take_turn(self) -> None:
        """Go on to the next token, with random numbers as if nobody else took any."""
        if self._random is not None:
            self._set_random(self._random)
        self._started = time.perf_counter()
        self._generation.switch()
        self._random = self._get_random()

    def _run(self, generate: Generate) -> None:
        self.tokens = generate(stopping_criteria=[self])
        self._note_time()

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any
    ) -> torch.BoolTensor:
        """Hand over; no sequence ends here."""
        self._note_time()
        self._comparison.switch()
        return cast(
            torch.BoolTensor,
            torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device),
        )

    def _note_time(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self._started)

    def _get_random(self) -> torch.Tensor:
        if self._device == "cpu":
            return torch.get_rng_state()
        return torch.cuda.get_rng_state(self._device)

    def _set_random(self, state: torch.Tensor) -> None:
        if self._device == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, self._device)


# Each turn would otherwise leave gradients on for the other: generate puts back what it found.
@torch.no_grad()
def take_turns(
    generate: Generate, patches: Patches, device: str, *, plain_first: bool
) -> tuple[Side, Side]:
    """Generate twice at the same time, plain and instrumented, and return both sides.

    Args:
        generate: takes ``stopping_criteria``, and sets the seed first.
        patches: of the instrumentation that is in force.
        device: ``cpu`` or that of an accelerator.
        plain_first: who has the first turn; whoever has one turn first has the next one last.
            The first to begin gets the memory that is at hand: two plain generations of eight
            sequences differ by a per cent if it is always the same one.
    """
    plain, instrumented = Side(generate, device), Side(generate, device)
    order = [plain, instrumented] if plain_first else [instrumented, plain]
    while not (plain.ended and instrumented.ended):
        for side in order:
            if side.ended:
                continue
            if side is plain:
                with patches.removed():
                    side.take_turn()
            else:
                side.take_turn()
        order.reverse()
    return plain, instrumented
