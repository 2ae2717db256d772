"""Every value of an encoder-decoder's record equals what its model gives when forced through it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from corevital import GenerationRecord
from tests.capture.forced_encoder_decoder import Forced
from tests.capture.observe import everything_equal, observe
from tests.models import (
    HEADS,
    LAYERS,
    T5_HAS_ITS_OWN_ATTENTION,
    GenerativeModel,
    tiny_features,
    tiny_model,
    tiny_prompt,
)
from tests.zoo.architectures import Architecture, in_this_release

FAMILIES = ("t5", "bart", "marian", "whisper")
TEXT = ("t5", "bart", "marian")
BACKENDS = ("sdpa", "eager")
TOLERANCE = 2e-3
PADDING = 5


def prompts(family: str, batch: int = 1) -> dict[str, Tensor]:
    """What ``generate`` is given, without padding."""
    if family == "whisper":
        return {"input_features": tiny_features(batch)}
    ids = tiny_prompt(batch)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def padded(side: str) -> dict[str, Tensor]:
    """Two prompts, the first of them shorter."""
    inputs = prompts("bart", batch=2)
    at = slice(None, PADDING) if side == "left" else slice(-PADDING, None)
    inputs["input_ids"][0, at] = 0
    inputs["attention_mask"][0, at] = 0
    return inputs


def model_of(family: str, backend: str = "sdpa", **config: Any) -> GenerativeModel:
    if family == "t5" and T5_HAS_ITS_OWN_ATTENTION:
        backend = "eager"
    return tiny_model(family, attn_implementation=backend, **config)


def has_attention(family: str) -> bool:
    return not (family == "t5" and T5_HAS_ITS_OWN_ATTENTION)


def generate(
    model: GenerativeModel, inputs: dict[str, Tensor], /, **arguments: Any
) -> tuple[Tensor, list[GenerationRecord]]:
    """The sequences, each with the decoder's first token, and the records."""
    settings = {"do_sample": False, "max_new_tokens": 12, "min_new_tokens": 12} | arguments
    result, records = observe(model, **inputs, **settings)
    # Whisper may return new tokens only.
    new = torch.stack([torch.from_numpy(record.token_ids) for record in records])
    start = torch.full((len(new), 1), model.generation_config.decoder_start_token_id)
    assert torch.equal(result[:, -new.shape[1] :], new)
    return torch.cat((start, new), dim=1), records


def forced(
    family: str, inputs: dict[str, Tensor], row: int, sequence: Tensor, **config: Any
) -> Forced:
    """One sequence through an eager model of the same weights, from its prompt without padding."""
    mask = inputs.get("attention_mask")
    alone = {name: values[row : row + 1] for name, values in inputs.items()}
    if mask is not None:
        seen = mask[row].bool()
        alone = {name: values[:, seen] for name, values in alone.items()}
    return Forced(model_of(family, "eager", **config), alone, sequence, prompt=1)


def assert_columns(observed: Any, expected: dict[str, Any]) -> None:
    assert observed is not None
    for name, values in expected.items():
        column = getattr(observed, name)
        if name in ("collapsed_heads", "focused_heads"):
            # A head within rounding of the threshold may fall on either side of it.
            assert np.mean(column != values) < 0.02, name
        else:
            np.testing.assert_allclose(column, values, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)


def assert_equals(record: GenerationRecord, expected: Forced, *, attention: bool = True) -> None:
    assert record.capture.failures == 0
    assert_columns(record.logits, expected.logits())
    assert_columns(record.hidden, expected.hidden())
    assert record.encoder is not None
    assert_columns(record.encoder.hidden, expected.encoder_hidden())
    prompt = expected.prompt()
    weights = prompt.pop("weights")
    if not attention:
        assert_columns(record.prompt, {"layer_transformation": prompt["layer_transformation"]})
        return
    assert_columns(record.attention, expected.attention())
    assert_columns(record.cross_attention, expected.cross_attention())
    assert_columns(record.encoder.attention, expected.encoder_attention())
    assert_columns(record.prompt, prompt)
    sparse = record.prompt.sparse
    assert sparse is not None
    assert sparse.total == pytest.approx(int((weights > 0.01).sum()), abs=3)
    listed = weights[sparse.layer, sparse.head, sparse.query, sparse.key]
    np.testing.assert_allclose(sparse.weight, listed, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_column_equals_the_forced_model(family: str, backend: str) -> None:
    inputs = prompts(family)
    sequences, (record,) = generate(model_of(family, backend), inputs)
    assert record.steps == 12
    expected = forced(family, inputs, 0, sequences[0])
    assert_equals(record, expected, attention=has_attention(family))


# Of absolute positions, padding on the left would make another prompt.
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("family", "side"), [("t5", "left"), ("t5", "right"), ("bart", "right")])
def test_padding_of_the_encoder_enters_no_statistic(family: str, backend: str, side: str) -> None:
    inputs = padded(side)
    sequences, records = generate(model_of(family, backend), inputs)
    assert [record.prompt_tokens for record in records] == [12 - PADDING, 12]
    for row, record in enumerate(records):
        expected = forced(family, inputs, row, sequences[row])
        assert_equals(record, expected, attention=has_attention(family))


@pytest.mark.parametrize("family", TEXT)
def test_answers_to_one_prompt_share_its_encoder(family: str) -> None:
    inputs = prompts(family, batch=2)
    torch.manual_seed(0)
    sequences, records = generate(
        model_of(family), inputs, do_sample=True, num_return_sequences=3, top_k=0
    )
    assert len({tuple(record.token_ids.tolist()) for record in records}) > 2
    for row, record in enumerate(records):
        expected = forced(family, inputs, row // 3, sequences[row])
        assert_equals(record, expected, attention=has_attention(family))
        assert record.prompt_hash == records[row // 3 * 3].prompt_hash


@pytest.mark.parametrize("cache", [{"use_cache": False}, {"cache_implementation": "static"}])
def test_every_kind_of_cache(cache: dict[str, Any]) -> None:
    inputs = padded("right")
    sequences, records = generate(model_of("bart"), inputs, **cache)
    for row, record in enumerate(records):
        assert_equals(record, forced("bart", inputs, row, sequences[row]))


@pytest.mark.parametrize("sampling", [False, True], ids=["beam search", "beam sampling"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_beams_are_followed_over_the_encoder_of_their_prompt(
    family: str, *, sampling: bool
) -> None:
    inputs = padded("right")
    model = model_of(family)
    arguments: dict[str, Any] = {
        **inputs,
        "num_beams": 4,
        "num_return_sequences": 2,
        "do_sample": sampling,
        "max_new_tokens": 10,
        "min_new_tokens": 10,
    }
    torch.manual_seed(2)
    plain = model.generate(**arguments)
    torch.manual_seed(2)
    result, records = observe(model, **arguments)
    assert torch.equal(result, plain)
    assert [record.prompt_tokens for record in records] == [12 - PADDING] * 2 + [12] * 2
    for row, record in enumerate(records):
        assert record.decoder_prompt_tokens == 1
        expected = forced(family, inputs, row // 2, result[row])
        assert_equals(record, expected, attention=has_attention(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_the_previous_token_is_one_of_the_decoders(family: str) -> None:
    if not has_attention(family):
        pytest.skip("has an attention of its own in this release")
    inputs = prompts(family)
    sequences, (record,) = generate(model_of(family), inputs)
    assert record.attention is not None
    weight = record.attention.previous_token_weight
    assert weight is not None
    expected = forced(family, inputs, 0, sequences[0]).own_weight()[:, weight.layers]
    np.testing.assert_allclose(weight.values, expected, atol=TOLERANCE)
    assert record.cross_attention is not None
    assert record.cross_attention.previous_token_weight is None


def test_the_decoder_may_be_given_its_first_tokens() -> None:
    inputs, begin = prompts("bart"), torch.tensor([[2, 7, 9]])
    model = model_of("bart")
    result, (record,) = observe(
        model, **inputs, decoder_input_ids=begin, max_new_tokens=5, min_new_tokens=5
    )
    assert record.decoder_prompt_tokens == 3
    assert record.prompt_tokens == 12
    expected = Forced(model_of("bart", "eager"), inputs, result[0], prompt=3)
    assert_equals(record, expected)


def test_a_decoder_with_fewer_layers_than_the_encoder() -> None:
    _, (record,) = generate(model_of("marian"), prompts("marian"))
    assert record.hidden is not None
    assert record.encoder is not None
    assert record.encoder.hidden is not None
    assert record.hidden.layers.tolist() == list(range(LAYERS - 1))
    assert record.encoder.hidden.layers.tolist() == list(range(LAYERS))
    assert record.encoder.attention is not None
    assert record.encoder.attention.heads.tolist() == [HEADS] * LAYERS


@pytest.mark.parametrize("sampling", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_everything_that_is_returned_stays_the_same(family: str, sampling: bool) -> None:
    model = model_of(family)
    arguments: dict[str, Any] = {
        **prompts(family, batch=2),
        "do_sample": sampling,
        "max_new_tokens": 10,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "output_hidden_states": True,
    }
    torch.manual_seed(7)
    plain = model.generate(**arguments)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    result, records = observe(model, **arguments)
    assert everything_equal(result, plain)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(records) == 2


def test_outputs_of_the_encoder_that_were_given() -> None:
    model, inputs = model_of("bart"), prompts("bart")
    outputs = model.get_encoder()(**inputs)
    mask = inputs["attention_mask"]
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    plain = model.generate(encoder_outputs=outputs, attention_mask=mask, **settings)
    result, (record,) = observe(model, encoder_outputs=outputs, attention_mask=mask, **settings)
    assert torch.equal(result, plain)
    reason = "the encoder's outputs were given"
    capture = record.capture
    assert capture.encoder_hidden is not None
    assert capture.encoder_attention is not None
    assert capture.encoder_hidden.reason == reason
    assert capture.encoder_attention.reason == reason
    assert capture.prompt.reason == reason
    assert record.prompt_tokens == 12
    assert record.prompt_hash is None
    assert record.cross_attention is not None


def test_embeddings_instead_of_ids() -> None:
    model, inputs = model_of("t5"), prompts("t5")
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    settings = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
    plain = model.generate(inputs_embeds=embeddings, **settings)
    result, (record,) = observe(model, inputs_embeds=embeddings, **settings)
    assert torch.equal(result, plain)
    assert record.prompt_tokens == 12
    assert record.prompt_hash is None
    assert record.prompt.layer_transformation is not None


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"prompt": False}, "prompt telemetry is switched off"),
        ({"prompt_max_tokens": 8}, "prompt of 12 positions; the limit is 8"),
    ],
    ids=["switched off", "limited"],
)
def test_prompt_telemetry_and_the_encoders_attention_have_limits(
    settings: dict[str, Any], reason: str
) -> None:
    arguments = {"max_new_tokens": 3, "do_sample": False}
    _, (record,) = observe(model_of("bart"), settings, **prompts("bart"), **arguments)
    assert record.capture.prompt.reason == reason
    assert record.capture.encoder_attention is not None
    assert record.capture.encoder_attention.reason == reason
    assert record.encoder is not None
    assert record.encoder.hidden is not None
    assert record.encoder.attention is None
    assert record.prompt.layer_transformation is None


def test_a_summary_leaves_the_encoder_alone() -> None:
    arguments = {"max_new_tokens": 3, "do_sample": False}
    _, (record,) = observe(model_of("bart"), {"capture": "summary"}, **prompts("bart"), **arguments)
    assert record.capture.encoder_hidden is not None
    assert record.capture.encoder_hidden.reason == "not part of this capture mode"
    assert record.capture.prompt.reason == "not part of this capture mode"
    assert record.prompt_tokens == 12
    assert record.cross_attention is not None
    assert record.cross_attention.layers.tolist() == [LAYERS - 1]


def test_a_decoder_only_model_has_no_encoder() -> None:
    _, (record,) = observe(tiny_model("llama"), input_ids=tiny_prompt(), max_new_tokens=2)
    assert record.encoder is None
    assert record.cross_attention is None
    assert record.decoder_prompt_tokens is None
    assert record.capture.encoder_hidden is None
    assert record.capture.cross_attention is None


@in_this_release
def test_positions_that_the_encoder_adds_are_not_taken_for_the_prompts() -> None:
    """LED pads what it is given to whole windows, and says so to nobody."""
    architecture = Architecture("led", "LEDForConditionalGeneration")
    (record,) = observe(architecture.build(), **architecture.inputs(1), max_new_tokens=2)[1]
    assert record.capture.encoder_hidden is not None
    assert record.capture.encoder_hidden.reason == (
        "the encoder's layers see 8 positions for 6 prompt tokens"
    )
    assert record.prompt_tokens == 6
    assert record.hidden is not None


@in_this_release
@pytest.mark.parametrize("cached", [True, False])
def test_layers_with_the_positions_before_the_sequences(*, cached: bool) -> None:
    architecture = Architecture("fsmt", "FSMTForConditionalGeneration")
    _, records = observe(
        architecture.build(),
        **architecture.inputs(2),
        num_beams=1,
        max_new_tokens=4,
        use_cache=cached,
    )
    reason = "the layers have the positions before the sequences"
    assert [record.capture.hidden.reason for record in records] == [reason] * 2
    assert all(record.hidden is None for record in records)
    assert all(record.logits is not None for record in records)


@in_this_release
@pytest.mark.parametrize(
    "architecture",
    [
        # With a mask that has a bias in it, a bias that follows the query, and windows.
        Architecture("canary", "CanaryForConditionalGeneration"),
        Architecture("umt5", "UMT5ForConditionalGeneration"),
        Architecture("moonshine_streaming", "MoonshineStreamingForConditionalGeneration"),
        Architecture("seamless_m4t", "SeamlessM4TForSpeechToText"),
    ],
    ids=str,
)
def test_what_is_computed_equals_the_weights_that_eager_returns(
    architecture: Architecture,
) -> None:
    found, expected = (
        observe(model, **architecture.inputs(2), max_new_tokens=4, do_sample=False)[1]
        for model in (architecture.build(), eager(architecture))
    )
    for record, reference in zip(found, expected, strict=True):
        assert record.capture.failures == 0
        assert record.encoder is not None
        assert reference.encoder is not None
        for part, other in (
            (record.attention, reference.attention),
            (record.cross_attention, reference.cross_attention),
            (record.encoder.attention, reference.encoder.attention),
        ):
            names = ("entropy_mean", "normalized_entropy_mean", "concentration_max")
            assert_columns(part, {name: getattr(other, name) for name in names})


def eager(architecture: Architecture) -> GenerativeModel:
    model = architecture.build()
    model.set_attn_implementation("eager")
    return model
