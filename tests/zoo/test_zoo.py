"""The zoo is whole, small, and the same at every call."""

from __future__ import annotations

import pytest
import torch

from tests.zoo.architectures import COMPLETE, Architecture, architectures, zoo
from tests.zoo.overrides import CONFIGURATIONS, FEATURES, GENERATION, LEFT_OUT

pytestmark = pytest.mark.skipif(not COMPLETE, reason="the tables are for another release")

SOME = zoo()[::20]
MOST_PARAMETERS = 5_000_000


def test_the_tables_name_only_what_there_is() -> None:
    types = {each.model_type for each in architectures()}
    classes = {each.class_name for each in architectures()}
    assert set(LEFT_OUT) <= types
    assert {*CONFIGURATIONS, *GENERATION} <= types | classes
    assert set(FEATURES) <= classes


@pytest.mark.parametrize("architecture", SOME, ids=str)
def test_a_model_is_small_and_the_same_at_every_call(architecture: Architecture) -> None:
    before = torch.random.get_rng_state()
    model, again = architecture.build(), architecture.build()
    assert torch.equal(torch.random.get_rng_state(), before)
    assert type(model).__name__ == architecture.class_name
    assert sum(weight.numel() for weight in model.parameters()) < MOST_PARAMETERS
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_hybrid_has_a_layer_of_each_kind() -> None:
    config = Architecture("qwen3_next", "Qwen3NextForCausalLM").configuration()
    assert config.layer_types == ["linear_attention", "full_attention"]
    config = Architecture("nemotron_h", "NemotronHForCausalLM").configuration()
    assert sorted(config.layers_block_type) == ["full_attention", "linear_attention", "mlp", "moe"]


def test_parts_of_a_whole_are_small_too() -> None:
    config = Architecture("voxtral", "VoxtralForConditionalGeneration").configuration()
    assert config.text_config.hidden_size == config.audio_config.hidden_size == 32
    assert config.text_config.num_hidden_layers == 2
