"""The rows that the sequences returned by a beam search went along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from corevital.capture.prefix_hash import prefix_hashes


@dataclass(frozen=True, slots=True)
class BeamPaths:
    """Where in a run the tokens of ``R`` returned sequences come from.

    ``rows`` ``[R, S]``: the row of the forward pass that predicted a token. ``groups`` ``[R]``: the
    prompt of the batch. ``candidates`` ``[R, S]``: the token's place among the candidates of its
    group. ``steps`` ``[R]``: how many tokens are a sequence's own, without what fills it up.
    ``tied`` ``[R]``: whether all of its own tokens were found.
    """

    rows: NDArray[np.int64]
    groups: NDArray[np.int64]
    candidates: NDArray[np.int64]
    steps: NDArray[np.int64]
    tied: NDArray[np.bool_]

    @classmethod
    def of(cls, returned: Tensor, row_hashes: Tensor, candidate_hashes: Tensor) -> BeamPaths:
        """Follow sequences from prefix to prefix.

        Args:
            returned: ``[R, S]`` generated tokens, those of a group next to each other.
            row_hashes: ``[T, groups, beams]``, of the tokens before each step; T at least S.
            candidate_hashes: ``[T, groups, n]``, of the tokens up to each step.
        """
        returned = returned.cpu()
        prefixes = prefix_hashes(returned).numpy()
        length = returned.shape[1]
        rows, candidates = (
            hashes[:length].cpu().numpy() for hashes in (row_hashes, candidate_hashes)
        )
        groups = np.arange(len(returned)) // (len(returned) // rows.shape[1])
        same_row = rows[:, groups] == prefixes.T[:-1, :, None]
        same_candidate = candidates[:, groups] == prefixes.T[1:, :, None]
        known = same_row.any(-1) & same_candidate.any(-1)
        # A sequence ends where its prefix is no row's: a row that ends does not run on. Behind it
        # comes the same token again and again.
        own = np.logical_and.accumulate(known, axis=0)
        filling = (returned == returned[:, -1:]).numpy().T
        return cls(
            (same_row.argmax(-1) + groups * rows.shape[2]).T,
            groups,
            same_candidate.argmax(-1).T,
            own.sum(0),
            (own | filling).all(0),
        )
