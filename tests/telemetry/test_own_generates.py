"""A model's own generate has one span, whatever can be seen of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from tests.instrumentation import attributes, events, identity, instrumented, parent_identity
from tests.models import tiny_features, tiny_model
from tests.providers import Telemetry
from tests.telemetry.conftest import Instrument
from tests.zoo.architectures import PROMPT_TOKENS, Architecture, in_this_release

CODEBOOKS = 9
DIA = Architecture("dia", "DiaForConditionalGeneration")


def test_a_call_has_a_span_and_every_codebook_a_child(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    model = DIA.build_or_skip()
    model.generate(**DIA.inputs(2), max_new_tokens=4, do_sample=False)
    *children, span = telemetry.spans()
    assert len(children) == 2 * CODEBOOKS
    assert {parent_identity(child) for child in children} == {identity(span)}
    found = attributes(span)
    assert found["corevital.capture.logits"] == "captured"
    assert found["corevital.batch.size"] == 2 * CODEBOOKS
    assert found["gen_ai.usage.input_tokens"] == 2 * PROMPT_TOKENS
    assert "gen_ai.output.type" not in found


def test_codes_of_audio_are_never_read_as_text(
    telemetry: Telemetry, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "SPAN_ONLY")
    instrument()

    class Tokenizer:
        def decode(self, ids: Any, **kwargs: Any) -> str:
            return " ".join(map(str, ids))

    DIA.build_or_skip().generate(
        **DIA.inputs(1), max_new_tokens=4, do_sample=False, tokenizer=Tokenizer()
    )
    *children, span = telemetry.spans()
    assert "gen_ai.input.messages" in attributes(span)
    assert "gen_ai.output.messages" not in attributes(span)
    steps = [step for child in children for step in events(child, "corevital.step")]
    assert steps
    assert not any("corevital.step.token.text" in attributes(step) for step in steps)


@in_this_release
def test_what_chooses_no_tokens_one_after_the_other_says_so(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    architecture = Architecture("parakeet_ctc", "ParakeetForCTC")
    model = architecture.build()
    features = torch.randn(1, 64, model.config.encoder_config.num_mel_bins)
    model.generate(input_features=features)
    (span,) = telemetry.spans()
    found = attributes(span)
    assert found["corevital.capture.logits"] == "unavailable: the model's own generate"


def test_no_codebook_is_stopped_early(telemetry: Telemetry, instrument: Instrument) -> None:
    instrument(intervene="repetition")
    DIA.build_or_skip().generate(**DIA.inputs(1), max_new_tokens=4, do_sample=False)
    (*_, span) = telemetry.spans()
    unavailable = attributes(span)["corevital.intervention.unavailable"]
    assert unavailable == "the model's own generate"


def test_what_ends_in_the_common_generate_has_its_span_only(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    tiny_model("whisper").generate(input_features=tiny_features(), max_new_tokens=4)
    assert len(telemetry.spans()) == 1


def test_an_exception_passes_and_the_span_has_it(
    telemetry: Telemetry, instrument: Instrument
) -> None:
    instrument()
    model = DIA.build_or_skip()
    with pytest.raises(ValueError, match="num_beams=1"):
        model.generate(**DIA.inputs(1), num_beams=2)
    (span,) = telemetry.spans()
    assert attributes(span)["error.type"] == "ValueError"


def test_a_class_made_later_is_instrumented_until_the_end(telemetry: Telemetry) -> None:
    with instrumented(telemetry):

        class Later(PreTrainedModel, GenerationMixin):
            config_class = PretrainedConfig

            def generate(self, *args: Any, **kwargs: Any) -> Any:
                return args

        assert Later(PretrainedConfig()).generate("as it was") == ("as it was",)
        assert len(telemetry.spans()) == 1
    assert Later(PretrainedConfig()).generate("as it was") == ("as it was",)
    assert len(telemetry.spans()) == 1
    assert "__wrapped__" not in dir(Later.generate)

    class Afterwards(Later):
        def generate(self, *args: Any, **kwargs: Any) -> Any:
            return args

    Afterwards(PretrainedConfig()).generate()
    assert len(telemetry.spans()) == 1
