"""What is said of a record with an encoder and cross-attention."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from corevital.assess.assessment import assess
from corevital.assess.blame import layer_blame
from corevital.assess.consistency import consistency
from corevital.assess.flags import health_flags
from corevital.assess.profile import DEFAULT_PROFILE
from corevital.record import EncoderHidden, EncoderSummary, GenerationRecord
from tests.assess.records import attention_columns, floats, hidden_columns, logit_columns, record

STEPS, LAYERS = 6, 4


def encoder_decoder(
    *, collapsed: int = 0, cross_collapsed: int = 0, start_tokens: int = 1
) -> GenerationRecord:
    """Some heads of ten collapsed at every step; all of them where one key is to be seen."""
    own = np.full((STEPS, LAYERS), collapsed)
    if start_tokens == 1:
        own[0] = 10
    generation = record(
        logits=logit_columns(entropy=[1.0] * STEPS),
        hidden=hidden_columns(np.ones((STEPS, LAYERS))),
        attention=attention_columns(own),
    )
    cross = attention_columns(np.full((STEPS, LAYERS), cross_collapsed))
    return replace(generation, cross_attention=cross, decoder_prompt_tokens=start_tokens)


def test_collapsed_cross_attention_is_no_attention_collapse() -> None:
    generation = encoder_decoder(cross_collapsed=10)
    found = assess(generation, DEFAULT_PROFILE)
    assert not found.flags.attention_collapse
    assert found.blame == ()
    assert found.risk.heuristic == assess(encoder_decoder(), DEFAULT_PROFILE).risk.heuristic


def test_collapsed_self_attention_still_is() -> None:
    found = assess(encoder_decoder(collapsed=8), DEFAULT_PROFILE)
    assert found.flags.attention_collapse
    assert [layer.layer for layer in found.blame] == list(range(LAYERS))


def test_a_first_step_with_one_key_to_see_says_nothing() -> None:
    generation = encoder_decoder()
    assert generation.steps_without_choice == 1
    short = replace(
        generation,
        attention=attention_columns([[10] * LAYERS]),
        cross_attention=None,
        hidden=None,
        logits=None,
        token_ids=np.arange(1),
    )
    assert not health_flags(short, DEFAULT_PROFILE).attention_collapse
    assert layer_blame(short) == ()
    given = replace(short, decoder_prompt_tokens=3)
    assert health_flags(given, DEFAULT_PROFILE).attention_collapse


def test_nan_in_cross_attention_is_flagged_and_its_layer_blamed() -> None:
    generation = encoder_decoder()
    non_finite = np.zeros((STEPS, LAYERS), dtype=bool)
    non_finite[2, 3] = True
    cross = attention_columns(np.zeros((STEPS, LAYERS)), non_finite=non_finite)
    generation = replace(generation, cross_attention=cross)
    assert health_flags(generation, DEFAULT_PROFILE).nan_or_inf
    (blamed,) = layer_blame(generation)
    assert (blamed.layer, blamed.severity) == (3, 1.0)
    assert blamed.reasons == (f"cross-attention has NaN or Inf in 1 of {STEPS} steps",)


def test_nan_in_the_encoder_is_flagged_and_blames_no_layer_of_the_decoder() -> None:
    values = floats([1.0, 1.0])
    non_finite = np.asarray([False, True])
    hidden = EncoderHidden(np.arange(2), values, values, values, values, values, non_finite)
    generation = replace(encoder_decoder(), encoder=EncoderSummary(hidden=hidden))
    assert health_flags(generation, DEFAULT_PROFILE).nan_or_inf
    assert layer_blame(generation) == ()


def test_the_rules_for_attention_hold_for_cross_attention() -> None:
    generation = encoder_decoder()
    assert consistency(generation) == ()
    assert generation.cross_attention is not None
    wrong = np.full((STEPS, LAYERS), 1.5, dtype=np.float32)
    cross = replace(generation.cross_attention, normalized_entropy_mean=wrong)
    (violation,) = consistency(replace(generation, cross_attention=cross))
    assert violation.name == "cross_attention:normalized_entropy_out_of_range"
