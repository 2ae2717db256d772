"""A short name for a prompt, by which runs of it can be found without its content."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from numpy.typing import NDArray

_HEX_DIGITS: Final = 16


def prompt_hash(model_name: str, token_ids: NDArray[np.integer]) -> str | None:
    """Hash of a model's name and a prompt.

    The same on every machine, in a batch or alone. Whoever can guess the whole prompt can tell
    that it was this one; images and the like in a prompt are no tokens and change nothing.

    Args:
        model_name: the name that is reported of the model.
        token_ids: ``[P]``, without padding.

    Returns:
        The first 16 hexadecimal digits of SHA-256 (FIPS 180-4) over the name in UTF-8, a null byte,
        and the ids as little-endian 64-bit integers; ``None`` for a prompt without tokens.
    """
    if not token_ids.size:
        return None
    digest = hashlib.sha256(model_name.encode() + b"\0")
    digest.update(np.ascontiguousarray(token_ids, dtype="<i8").tobytes())
    return digest.hexdigest()[:_HEX_DIGITS]
