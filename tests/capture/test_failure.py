"""Only failures of CoreVital's own code are taken for such."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corevital.capture.failure import is_own_failure
from corevital.capture.masks import additive_mask


def raised_by_torch_for_corevital() -> Exception:
    with pytest.raises(TypeError) as caught:
        additive_mask(object(), (0, 1), 1, 1, None, torch.device("cpu"))
    # The frames of the test come first: the innermost one counts.
    return caught.value


def test_an_error_raised_while_observing_is_corevitals() -> None:
    assert is_own_failure(raised_by_torch_for_corevital())


def test_an_error_raised_in_numpy_is_corevitals() -> None:
    with pytest.raises(ValueError, match="concatenate") as caught:
        np.concatenate([])
    assert not is_own_failure(caught.value), "its innermost Python frame is this test"
    with pytest.raises(ValueError, match="equal division") as in_numpy:
        np.split(np.zeros(5), 2)
    assert is_own_failure(in_numpy.value)


def raise_here(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize("error", [RuntimeError("time is up"), ValueError("stop")])
def test_an_error_raised_by_other_code_is_the_users(error: Exception) -> None:
    assert not is_own_failure(raise_here(error))


@pytest.mark.parametrize("kind", [TimeoutError, OSError, StopIteration, Exception])
def test_a_kind_that_observing_never_raises_is_the_users_wherever_it_strikes(
    kind: type[Exception],
) -> None:
    error = raised_by_torch_for_corevital()
    assert not is_own_failure(kind("struck there").with_traceback(error.__traceback__))
