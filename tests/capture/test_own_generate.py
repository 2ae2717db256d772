"""Which models have a generate of their own that ends in no other."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel

from corevital.capture.own_generate import decodes_with_library_loop, own_generate
from tests.models import tiny_model
from tests.zoo.architectures import in_this_release

MODELS = Path(inspect.getfile(transformers)).parent / "models"


class Own(PreTrainedModel, GenerationMixin):
    config_class = PretrainedConfig

    def generate(self, *args: Any, stopping_criteria: Any = None, **kwargs: Any) -> Any:
        return self._prepared(args, stopping_criteria)

    def _prepared(self, inputs: Any, stopping_criteria: Any) -> Any:
        model: Any = self
        return model._sample(inputs, stopping_criteria=stopping_criteria)


class OwnLoop(Own):
    def _sample(self, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError


class HandsOver(Own):
    def generate(self, *args: Any, stopping_criteria: Any = None, **kwargs: Any) -> Any:
        return self._wrapped(args)

    def _wrapped(self, inputs: Any) -> Any:
        return [super(HandsOver, self).generate(each) for each in inputs]


class NoCriteria(PreTrainedModel, GenerationMixin):
    config_class = PretrainedConfig

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = self
        return model._sample(*args, **kwargs)


class Forecasts(PreTrainedModel):
    config_class = PretrainedConfig

    def generate(self, values: Any) -> Any:
        return values


def test_the_base_is_found_that_defines_it() -> None:
    assert own_generate(Own) is Own
    assert own_generate(OwnLoop) is Own
    assert own_generate(NoCriteria) is NoCriteria


def test_what_ends_in_another_generate_or_generates_no_tokens_is_left_alone() -> None:
    assert own_generate(HandsOver) is None
    assert own_generate(Forecasts) is None
    assert own_generate(type(tiny_model("llama"))) is None
    assert own_generate(type(tiny_model("whisper"))) is None


@pytest.mark.parametrize(
    ("model_class", "expected"), [(Own, True), (OwnLoop, False), (NoCriteria, False)]
)
def test_the_loop_of_the_library_is_told_from_others(model_class: type, *, expected: bool) -> None:
    assert decodes_with_library_loop(model_class) is expected


@in_this_release
def test_all_of_the_library_are_known() -> None:
    found = {each for each in models_that_generate() if own_generate(each) is not None}
    own_loops = {each.__name__ for each in found if not decodes_with_library_loop(each)}
    assert {each.__name__ for each in found} - own_loops == {
        "DiaForConditionalGeneration",
        "MusicgenForCausalLM",
        "MusicgenForConditionalGeneration",
        "MusicgenMelodyForCausalLM",
        "MusicgenMelodyForConditionalGeneration",
    }
    assert own_loops == {
        "DiffusionGemmaForBlockDiffusion",
        "GraniteSpeech5ForCTC",
        "LasrForCTC",
        "ParakeetForCTC",
        "RagTokenForGeneration",
    }


def models_that_generate() -> Iterator[type]:
    """The models of all files that define a ``generate``."""
    for folder in MODELS.iterdir():
        sources = [*folder.glob("modeling_*.py"), *folder.glob("generation_*.py")]
        if not any(re.search(r"def generate\(", path.read_text("utf-8")) for path in sources):
            continue
        for path in folder.glob("modeling_*.py"):
            module = importlib.import_module(f"transformers.models.{folder.name}.{path.stem}")
            for each in vars(module).values():
                is_model = inspect.isclass(each) and issubclass(each, PreTrainedModel)
                if is_model and each.__module__ == module.__name__:
                    yield each
