"""What tells a model that processes share from one that is all here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from corevital.capture.division import is_divided, is_shard, pipeline_stages, processes, whole_heads
from corevital.capture.prompt_surprisal import needs_no_other_process
from tests.models import HEADS, tiny_model


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


def test_all_heads_are_those_of_the_configuration() -> None:
    assert whole_heads(tiny_model("gpt2")) == HEADS
    assert whole_heads(nn.Linear(2, 2)) is None


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
