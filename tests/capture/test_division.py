"""What tells a model that processes share from one that is all here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from corevital.capture import division
from corevital.capture.division import is_divided, is_shard, pipeline_stages, processes
from corevital.capture.prompt_surprisal import needs_no_other_process
from corevital.record import Captured
from tests.capture.observe import observe
from tests.models import HEADS, GenerativeModel, tiny_model, tiny_prompt

STEPS = 4


@pytest.fixture
def group(tmp_path: Path) -> Iterator[None]:
    """A group of this process alone."""
    meeting_point = (tmp_path / "group").as_uri()
    torch.distributed.init_process_group("gloo", meeting_point, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were another process; what there is to know does not ask it."""
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)


def sharded(size: int = 4) -> nn.Linear:
    layer = nn.Linear(size, size, bias=False)
    mesh = init_device_mesh("cpu", (1,))
    layer.weight = nn.Parameter(distribute_tensor(layer.weight.data, mesh, [Shard(0)]))
    return layer


def test_one_process_waits_for_nobody() -> None:
    assert processes() == 1


def test_a_group_of_one_has_nobody_to_wait_for(group: None) -> None:
    assert processes() == 1
    assert not is_divided(sharded())


def test_a_shard_is_told_from_a_tensor(group: None) -> None:
    assert is_shard(sharded().weight)
    assert not is_shard(torch.ones(2))
    assert not is_shard(None)


class TestWithAnotherProcess:
    def test_a_model_that_is_all_here_is_not_divided(self, two: None) -> None:
        assert not is_divided(tiny_model("llama"))

    def test_tensor_parallelism_divides(self, two: None) -> None:
        model = tiny_model("llama")
        model._tp_size = 2  # type: ignore[assignment]
        assert is_divided(model)

    def test_stages_divide(self, two: None) -> None:
        model = tiny_model("llama")
        assert pipeline_stages(model) == 1
        model._pp_stage = SimpleNamespace(pp_size=2)  # type: ignore[assignment]
        assert pipeline_stages(model) == 2
        assert is_divided(model)

    def test_a_shard_among_the_parameters_divides(
        self, group: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = nn.Sequential(nn.Linear(4, 4), sharded())
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        assert is_divided(model)


class TestWhatTheSurprisalOfAPromptNeeds:
    states = torch.ones(1, 3, 4)

    def test_alone_any_head_will_do(self) -> None:
        assert needs_no_other_process(nn.Identity(), self.states, 6)

    def test_with_others_a_whole_head_will_do(self, two: None) -> None:
        assert needs_no_other_process(nn.Linear(4, 6), self.states, 6)

    def test_with_others_a_part_of_a_head_will_not(self, two: None) -> None:
        assert not needs_no_other_process(nn.Linear(4, 3), self.states, 6)

    def test_with_others_no_module_is_called(self, two: None) -> None:
        changed = nn.Linear(4, 6)
        changed.forward = lambda states: states  # type: ignore[method-assign, assignment]
        assert not needs_no_other_process(changed, self.states, 6)
        assert not needs_no_other_process(nn.Sequential(nn.Linear(4, 6)), self.states, 6)

    def test_with_others_weights_without_memory_will_not(self, two: None) -> None:
        head = nn.Linear(4, 6)
        head.weight.untyped_storage().resize_(0)
        assert not needs_no_other_process(head, self.states, 6)

    def test_with_others_a_shard_will_not(
        self, group: None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        head = sharded()
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
        assert not needs_no_other_process(head, self.states, 4)


class TestShardsAreLeftAlone:
    """Whatever is asked of them may wait for other processes."""

    @pytest.fixture(autouse=True)
    def shared(self, group: None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mesh = init_device_mesh("cpu", (1,))
        monkeypatch.setattr(division, "processes", lambda: 2)

    @pytest.fixture
    def model(self) -> GenerativeModel:
        model = tiny_model("llama", tie_word_embeddings=False)
        model._tp_size = 2  # type: ignore[assignment]
        return model

    def shard(self, values: torch.Tensor) -> DTensor:
        return DTensor.from_local(values, self.mesh, [Shard(0)], run_check=False)

    def test_logits(self, model: GenerativeModel) -> None:
        def loop(model: Any, input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
            for _step in range(STEPS):
                newest = model(input_ids).logits.to_local()[:, -1:].argmax(-1)
                input_ids = torch.cat((input_ids, newest), dim=-1)
            return input_ids

        model.lm_head.register_forward_hook(lambda *call: self.shard(call[-1]))
        _, (record,) = observe(
            model, inputs=tiny_prompt(), custom_generate=loop, max_new_tokens=STEPS
        )
        reason = "the logits are divided among processes"
        assert record.capture.logits == Captured(False, reason)
        assert record.capture.prompt == Captured(False, reason)
        assert record.capture.hidden == Captured(True)
        assert record.capture.failures == 0

    def test_hidden_states(self, model: GenerativeModel) -> None:
        first, second = model.model.layers[:2]
        first.register_forward_hook(lambda *call: self.shard(call[-1]))
        second.register_forward_pre_hook(lambda _, args: (args[0].to_local(), *args[1:]))
        _, (record,) = observe(model, inputs=tiny_prompt(), max_new_tokens=STEPS)
        reason = "the hidden states are divided among processes"
        assert record.capture.hidden == Captured(False, reason)
        assert record.capture.prompt == Captured(False, reason)
        assert record.capture.logits == Captured(True)
        assert record.capture.failures == 0

    def test_queries(self, model: GenerativeModel, monkeypatch: pytest.MonkeyPatch) -> None:
        rotate = modeling_llama.apply_rotary_pos_emb

        def rotated(query: Any, key: Any, *angles: Any) -> Any:
            query, key = rotate(query, key, *angles)
            return self.shard(query), key

        def attention(module: nn.Module, query: DTensor, *given: Any, **options: Any) -> Any:
            return sdpa_attention_forward(module, query.to_local(), *given, **options)

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotated)
        monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._local_mapping, "sdpa", attention)
        _, (record,) = observe(model, inputs=tiny_prompt(), max_new_tokens=STEPS)
        reason = f"processes share the model, and this one has {HEADS} of {HEADS} heads"
        assert record.capture.attention == Captured(False, reason)
        assert record.capture.hidden == Captured(True)
        assert record.capture.failures == 0
