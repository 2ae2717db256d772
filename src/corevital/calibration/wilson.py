"""How far a share that was found in a few runs may lie from the true one."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_NORMAL_QUANTILE: Final = 1.959964
"""Of the standard normal distribution at 0.975."""


def wilson_interval(
    share: NDArray[np.float64], count: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ends of the 95 % confidence interval of each ``share`` of ``count`` runs, ``[N]``, in [0, 1].

    The score interval (Wilson 1927, doi:10.1080/01621459.1927.10502953), which holds for shares
    near 0 and 1 too.
    """
    squared = _NORMAL_QUANTILE**2
    center = (share + squared / (2 * count)) / (1 + squared / count)
    reach = (
        _NORMAL_QUANTILE
        * np.sqrt(share * (1 - share) / count + squared / (4 * count**2))
        / (1 + squared / count)
    )
    return np.clip(center - reach, 0.0, 1.0), np.clip(center + reach, 0.0, 1.0)
