"""Records say of every architecture what ``transformers`` itself shows of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from corevital.record import PreviousTokenWeight
from tests.zoo.architectures import COMPLETE, Architecture, zoo
from tests.zoo.differential import quiet
from tests.zoo.figures import Shown, differences, disagreements, shown

OTHER_OUTPUTS = {
    "big_bird": "shows no attention",
    "blt": "shows the layers of its patcher in place of those before the decoder",
    "dia": "shows both rows of its guidance, and logits of codebooks",
    "falcon": "has no eager attention unless it is built with it",
    "gemma3n_text": "shows several streams",
    "musicgen": "shows logits of codebooks",
    "musicgen_melody": "shows logits of codebooks",
}
if not COMPLETE:
    OTHER_OUTPUTS |= dict.fromkeys(("biogpt", "roberta-prelayernorm"), "does not show the norm")
"""What is not to be compared with the outputs; each has tests of its own."""
OTHER_BY_DEFAULT = {
    "blt-BltForCausalLM": "it divides the prompt otherwise",
    "falcon-FalconForCausalLM": "has no eager attention unless it is built with it",
    "musicgen-MusicgenForCausalLM": "its padding is seen otherwise",
    "seamless_m4t_v2-SeamlessM4Tv2ForSpeechToText": "its encoder computes something else",
}
"""What computes something else with eager attention than by default."""
NOT_IN_HALF = {"inkling2_text", "xlnet"}
"""What mixes precisions, and raises ``RuntimeError``."""
MORE_THAN_IT_SEES = 24
"""Tokens; the toy's sparse attention has room for few."""
CANNOT_SHOW = "musicgen_melody-MusicgenMelodyForConditionalGeneration"
"""Raises ``KeyError`` when it is asked for its outputs."""

of_every_architecture = pytest.mark.parametrize(
    "architecture", [each for each in zoo() if str(each) != CANNOT_SHOW], ids=str
)


@of_every_architecture
def test_records_say_what_the_outputs_show(architecture: Architecture) -> None:
    if architecture.model_type in OTHER_OUTPUTS:
        pytest.skip(OTHER_OUTPUTS[architecture.model_type])
    with quiet():
        assert disagreements(shown(architecture, "eager")) == []
        assert disagreements(shown(architecture, None)) == []


@of_every_architecture
def test_they_do_in_half_precision(architecture: Architecture) -> None:
    if architecture.model_type in OTHER_OUTPUTS:
        pytest.skip(OTHER_OUTPUTS[architecture.model_type])
    if architecture.model_type in NOT_IN_HALF:
        pytest.skip("does not generate in half precision")
    with quiet():
        assert disagreements(shown(architecture, "eager", torch.bfloat16)) == []


@of_every_architecture
def test_records_are_the_same_with_either_attention(architecture: Architecture) -> None:
    with quiet():
        eager, default = shown(architecture, "eager"), shown(architecture, None)
    if str(architecture) in OTHER_BY_DEFAULT:
        assert not (COMPLETE and same_logits(eager, default))
        pytest.skip(OTHER_BY_DEFAULT[str(architecture)])
    assert same_logits(eager, default)
    for left, right in zip(eager.records, default.records, strict=True):
        assert differences(left, right, eager.tolerance) == []


@pytest.mark.skipif(not COMPLETE, reason="not in this release")
def test_sparse_attention_may_hide_the_newest_key() -> None:
    """Then no weight is on it; in a cache of a fixed size its place cannot be told."""
    architecture = Architecture("qwen4_exp_text", "Qwen4ExpForCausalLM")
    with quiet():
        eager = shown(architecture, "eager", tokens=MORE_THAN_IT_SEES)
        fixed = shown(
            architecture, "eager", tokens=MORE_THAN_IT_SEES, cache_implementation="static"
        )

    assert disagreements(eager) == []
    assert disagreements(fixed) == []
    weights = own_token_weights(eager)
    assert any(each is not None and (each.values == 0).any() for each in weights)
    assert own_token_weights(fixed) == [None, None]


def own_token_weights(generation: Shown) -> list[PreviousTokenWeight | None]:
    return [
        None if record.attention is None else record.attention.previous_token_weight
        for record in generation.records
    ]


def same_logits(left: Shown, right: Shown) -> bool:
    return all(
        np.allclose(a, b, rtol=left.tolerance, atol=left.tolerance)
        for a, b in zip(left.outputs.logits, right.outputs.logits, strict=True)
    )
