"""Whether the columns of a record are those that were recomputed."""

from __future__ import annotations

from typing import Any

import numpy as np

from corevital import GenerationRecord
from tests.capture.recomputation import attention_columns, hidden_columns, logit_columns

# The run that is observed and the one that is recomputed both compute in float32, by different
# kernels: attention over tens of keys and thirty layers differs in the fifth digit.
RELATIVE = 2e-3
ABSOLUTE = 2e-3


def all_visible(_step: int, keys: int) -> slice:
    return slice(0, keys)


def close(observed: Any, expected: Any) -> None:
    np.testing.assert_allclose(observed, expected, rtol=RELATIVE, atol=ABSOLUTE)


def assert_record_equals_outputs(
    record: GenerationRecord, outputs: Any, row: int = 0, visible: Any = all_visible
) -> None:
    steps = record.steps
    prompt = outputs.sequences.shape[1] - len(outputs.logits)
    assert record.token_ids.tolist() == outputs.sequences[row, prompt : prompt + steps].tolist()
    for name, expected in logit_columns(outputs, row, steps).items():
        close(getattr(record.logits, name), expected)
    for name, expected in hidden_columns(outputs, row, steps).items():
        close(getattr(record.hidden, name), expected)
    for name, expected in attention_columns(outputs, row, steps, visible).items():
        observed = getattr(record.attention, name)
        if name in ("collapsed_heads", "focused_heads"):
            # A head within rounding of the threshold may fall on either side of it.
            assert np.mean(observed != expected) < 0.01, name
        else:
            close(observed, expected)
