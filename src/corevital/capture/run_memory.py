"""Memory in which a run collects its steps and computes, and the next run after it."""

from __future__ import annotations

from typing import Final

from corevital.capture.scratch import Scratch

_KEPT_FOR_STEPS: Final = 4
_spare: Final[list[RunMemory]] = []


class RunMemory:
    """What one run writes to.

    On a CPU a fresh page costs as long as what is computed in it, and memory that comes and goes
    makes the application's own come and go with it. So one run's is kept for the next.

    Attributes:
        keys: for those of several layers together.
        products: for what is computed, and read before anything else is.
        scores: the same, of products in another type.
        results: the same, of what is made from them.
    """

    def __init__(self) -> None:
        self.keys = Scratch()
        self.products = Scratch()
        self.scores = Scratch()
        self.results = Scratch()
        self._for_steps: list[Scratch] = []
        self._taken = 0

    @classmethod
    def take(cls) -> RunMemory:
        """What a run before gave back, or new memory."""
        try:
            return _spare.pop()
        except IndexError:
            return cls()

    @staticmethod
    def let_go() -> None:
        """Keep nothing for a next run."""
        _spare.clear()

    def for_steps(self) -> Scratch:
        """Memory for steps to wait in, which is nobody else's."""
        if self._taken == len(self._for_steps):
            self._for_steps.append(Scratch())
        self._taken += 1
        return self._for_steps[self._taken - 1]

    def give_back(self) -> None:
        """Leave it to the next run; nothing in it is read any more.

        Of runs at the same time, the largest memory is kept: what is held between runs would
        otherwise depend on which ends first.
        """
        self._taken = 0
        del self._for_steps[_KEPT_FOR_STEPS:]
        for scratch in self._pieces():
            scratch.keep_if_small()
        if all(self._size() > other._size() for other in _spare):
            _spare[:] = [self]

    def _size(self) -> int:
        """In bytes."""
        return sum(scratch.nbytes for scratch in self._pieces())

    def _pieces(self) -> tuple[Scratch, ...]:
        return (self.keys, self.products, self.scores, self.results, *self._for_steps)
