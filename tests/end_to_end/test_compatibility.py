"""What docs/compatibility.md says of the architectures is what the zoo shows."""

from __future__ import annotations

import re

import pytest
import transformers

from docs.generate_compatibility import TARGET, page, row
from tests.zoo.architectures import Architecture, architectures, zoo
from tests.zoo.differential import quiet
from tests.zoo.overrides import LEFT_OUT

TEXT = TARGET.read_text(encoding="utf-8")
# One of each kind: ordinary, hybrid, without attention, with an attention of its own, with several
# streams, encoder-decoder, and with a generate of its own.
SAMPLE = (
    Architecture("llama", "LlamaForCausalLM"),
    Architecture("zamba2", "Zamba2ForCausalLM"),
    Architecture("mamba", "MambaForCausalLM"),
    Architecture("bloom", "BloomForCausalLM"),
    Architecture("gemma3n_text", "Gemma3nForCausalLM"),
    Architecture("inkling_text", "InklingForCausalLM"),
    Architecture("t5", "T5ForConditionalGeneration"),
    Architecture("dia", "DiaForConditionalGeneration"),
)

pytestmark = pytest.mark.skipif(
    f"`transformers` {transformers.__version__} " not in TEXT.replace("\n", " "),
    reason="the page is of another release of transformers",
)


@pytest.mark.parametrize("architecture", SAMPLE, ids=str)
def test_an_architecture_is_observed_as_the_page_says(architecture: Architecture) -> None:
    found = row(architecture)
    assert found.line() in TEXT
    assert found.encoder_line() in TEXT


def test_the_whole_page_is_what_the_zoo_shows(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("zoo") != "full":
        pytest.skip("takes minutes: --zoo=full")
    assert page([row(each) for each in zoo()]) == TEXT


def test_the_page_has_every_architecture() -> None:
    for each in architectures():
        if each.model_type in LEFT_OUT:
            assert f"- `{each.model_type}` {LEFT_OUT[each.model_type][0]}." in TEXT
        else:
            assert f"| `{each.model_type}` | `{each.class_name}` |" in TEXT


@pytest.mark.parametrize("model_type", LEFT_OUT)
def test_what_is_left_out_cannot_generate(model_type: str) -> None:
    _, message = LEFT_OUT[model_type]
    for each in architectures():
        if each.model_type == model_type:
            with quiet(), pytest.raises(Exception, match=re.escape(message)):
                each.build().generate(**each.inputs(1), max_new_tokens=1)
