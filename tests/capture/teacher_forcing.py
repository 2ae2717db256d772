"""What an uninstrumented model says of a sequence, whatever decoding it came from.

One eager forward pass over the whole sequence, without padding, cache or beams.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from corevital import GenerationRecord
from tests.capture.agreement import all_visible, assert_record_equals_outputs
from tests.models import GenerativeModel


def forced(model: GenerativeModel, token_ids: torch.Tensor, prompt: int) -> Any:
    """What ``generate`` with every output would have returned for ``token_ids`` ``[P + S]``."""
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            whole: Any = model
            outputs = whole(
                token_ids[None], output_hidden_states=True, output_attentions=True, use_cache=False
            )
    finally:
        model.set_attn_implementation(implementation)
    stops = range(prompt, len(token_ids))
    return SimpleNamespace(
        sequences=token_ids[None],
        logits=[outputs.logits[:, stop - 1] for stop in stops],
        hidden_states=[[layer[:, :stop] for layer in outputs.hidden_states] for stop in stops],
        attentions=[[rows[:, :, :stop, :stop] for rows in outputs.attentions] for stop in stops],
    )


def assert_records_equal_forced(
    records: list[GenerationRecord],
    model: GenerativeModel,
    sequences: torch.Tensor,
    prompt: int,
    padding: list[int] | None = None,
    visible: Any = all_visible,
) -> None:
    """Every record is what the model says of its sequence, one of ``sequences`` ``[B, P + S]``.

    ``padding`` counts each sequence's tokens of padding on the left. ``visible`` is that of
    ``attention_columns``.
    """
    assert len(records) == len(sequences)
    for row, record in enumerate(records):
        before = padding[row] if padding is not None else 0
        token_ids = sequences[row, before : prompt + record.steps]
        assert record.steps > 0
        assert record.prompt_tokens == prompt - before
        outputs = forced(model, token_ids, prompt - before)
        assert_record_equals_outputs(record, outputs, visible=visible)
        for captured in (record.capture.logits, record.capture.hidden, record.capture.attention):
            assert captured.available, captured.reason


def forced_surprisal(
    model: GenerativeModel, token_ids: torch.Tensor, prompt: int
) -> NDArray[np.float32]:
    """Bits ``[S]`` of every generated token of ``token_ids`` ``[P + S]``, of any architecture."""
    whole: Any = model
    with torch.no_grad():
        logits = whole(token_ids[None, :-1], use_cache=False).logits[0, prompt - 1 :]
    bits = -logits.log_softmax(-1).gather(-1, token_ids[prompt:, None]) / math.log(2)
    return np.asarray(bits[:, 0])


def own_length(generated: list[int], end: int, most: int) -> int:
    """How many tokens belong to a sequence: those up to the first end token, at most ``most``."""
    return generated.index(end) + 1 if end in generated else most
