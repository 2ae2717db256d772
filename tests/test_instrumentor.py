"""The instrumentor switches CoreVital on and off, completely and any number of times."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch
from opentelemetry.instrumentation.dependencies import get_dependency_conflicts
from torch import nn
from transformers import (
    GenerationMixin,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.modeling_utils import AttentionInterface

from corevital import CoreVitalInstrumentor, SettingsError
from corevital.capture.attention_functions import LOOKUP
from tests.instrumentation import hooks_on, instrumented
from tests.models import tiny_model, tiny_prompt
from tests.providers import Telemetry
from tests.test_settings import BAD, variable

Patchable = dict[tuple[str, str], object]


def modules() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        if name.startswith(("torch.nn", "transformers")) and isinstance(module, ModuleType):
            yield name, module


def patchable() -> Patchable:
    """Every function and class of transformers and torch.nn, and what their classes hold.

    So a patch shows wherever it is made.
    """
    found: Patchable = {}
    for module_name, module in modules():
        for name, value in list(vars(module).items()):
            if callable(value):
                found[module_name, name] = value
            if isinstance(value, type) and value.__module__ == module_name:
                found[f"{module_name}.{name}", ""] = value
                for attribute, held in list(vars(value).items()):
                    if callable(held) or isinstance(held, classmethod | staticmethod | property):
                        found[f"{module_name}.{name}", attribute] = held
    return found


SERVERS = (
    "transformers.generation.continuous_batching",
    "transformers.cli.serving",
    "transformers.commands.serving",
)


def patched(before: Patchable) -> set[tuple[str, str]]:
    """What is no longer the object that it was, or has come to a class that did not have it."""
    now = patchable()
    owners = {owner for owner, _ in before}
    # A lazy module, other than a class, may forget a name and import it again.
    changed = {
        key
        for key, value in before.items()
        if now.get(key, value if key[0] in sys.modules else None) is not value
    }
    added = {key for key in now.keys() - before.keys() if key[0] not in sys.modules}
    return changed | {key for key in added if key[0] in owners}


@pytest.fixture
def original() -> Patchable:
    """Both as they are without CoreVital."""
    # What is imported when it is first used must not be taken for a patch.
    tiny_model("llama").generate(tiny_prompt(), max_new_tokens=1)
    return patchable()


def generate(model: Any, **options: Any) -> torch.Tensor:
    tokens = model.generate(tiny_prompt(), max_new_tokens=3, do_sample=False, **options)
    assert isinstance(tokens, torch.Tensor)
    return tokens


class CallsBack(StoppingCriteria):
    """Calls a function after the first token and never stops."""

    def __init__(self, act: Any) -> None:
        self._act = act

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        act, self._act = self._act, None
        if act is not None:
            act()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)  # type: ignore[return-value]


def test_is_a_singleton() -> None:
    assert CoreVitalInstrumentor() is CoreVitalInstrumentor()


def test_patches_are_few_and_all_undone(telemetry: Telemetry, original: Patchable) -> None:
    with instrumented(telemetry):
        inside = patched(original)

    of_servers = {patch for patch in inside if patch[0].startswith(SERVERS)}
    # Of models that have their own, where another test has imported them.
    of_models = {patch for patch in inside if patch[0].startswith("transformers.models.")}
    assert {name for _, name in of_models} <= {"generate"}
    assert inside - of_servers - of_models == {
        ("transformers.generation.utils.GenerationMixin", "_assisted_decoding"),
        ("transformers.generation.utils.GenerationMixin", "_beam_search"),
        ("transformers.generation.utils.GenerationMixin", "_sample"),
        ("transformers.generation.utils.GenerationMixin", "generate"),
        ("transformers.modeling_layers.GradientCheckpointingLayer", "__call__"),
        (f"transformers.modeling_utils.{AttentionInterface.__name__}", LOOKUP),
        ("transformers.modeling_utils.PreTrainedModel", "__call__"),
        ("transformers.modeling_utils.PreTrainedModel", "__init_subclass__"),
        ("transformers.tokenization_utils_base.PreTrainedTokenizerBase", "apply_chat_template"),
    }
    # Of continuous batching, and of `transformers serve` where another test has imported it.
    assert len(of_servers) <= 9 + 2
    assert patched(original) == set()


def test_undone_after_generations_too(telemetry: Telemetry, original: Patchable) -> None:
    model = tiny_model("llama")
    with instrumented(telemetry):
        generate(model)
    assert patched(original) == set()
    assert hooks_on(model) == 0

    generate(model)
    assert len(telemetry.spans()) == 1


def test_instrumenting_twice_instruments_once(telemetry: Telemetry, original: Patchable) -> None:
    instrumentor = CoreVitalInstrumentor()
    with instrumented(telemetry):
        once = {name: getattr(GenerationMixin, name) for name in ("generate",)}
        instrumentor.instrument(tracer_provider=telemetry.tracer_provider)
        assert {name: getattr(GenerationMixin, name) for name in ("generate",)} == once

        generate(tiny_model("llama"))
    instrumentor.uninstrument()
    instrumentor.uninstrument()

    assert len(telemetry.spans()) == 1
    assert patched(original) == set()


def test_can_be_switched_on_again_with_other_settings(telemetry: Telemetry) -> None:
    model = tiny_model("llama")
    for capture in ("full", "summary", "full"):
        with instrumented(telemetry, capture=capture):
            generate(model)

    modes = [(span.attributes or {})["corevital.capture.mode"] for span in telemetry.spans()]
    assert modes == ["full", "summary", "full"]
    # Of the processors of earlier times, which stay with the provider, none writes again.
    for span in telemetry.spans():
        steps = [event for event in span.events if event.name == "corevital.step"]
        assert len(steps) == 3
    assert len(telemetry.logs()) == 3


def test_models_loaded_before_and_after_are_instrumented(telemetry: Telemetry) -> None:
    before = tiny_model("llama")
    with instrumented(telemetry):
        generate(before)
        generate(tiny_model("gpt2"))

    names = [span.name for span in telemetry.spans()]
    assert names == ["text_completion LlamaForCausalLM", "text_completion GPT2LMHeadModel"]


def test_generate_keeps_its_signature_and_documentation(telemetry: Telemetry) -> None:
    before = inspect.signature(GenerationMixin.generate), GenerationMixin.generate.__doc__
    with instrumented(telemetry):
        assert before == (
            inspect.signature(GenerationMixin.generate),
            GenerationMixin.generate.__doc__,
        )


def test_generate_may_be_called_through_the_class(telemetry: Telemetry) -> None:
    model = tiny_model("llama")
    expected = generate(model)
    with instrumented(telemetry):
        of_class: Any = GenerationMixin
        tokens = of_class.generate(model, tiny_prompt(), max_new_tokens=3, do_sample=False)

    assert torch.equal(tokens, expected)
    assert len(telemetry.spans()) == 1


def test_may_be_switched_off_while_a_generation_runs(
    telemetry: Telemetry, original: Patchable
) -> None:
    model = tiny_model("llama")
    expected = generate(model)
    with instrumented(telemetry) as instrumentor:
        off = StoppingCriteriaList([CallsBack(instrumentor.uninstrument)])
        assert torch.equal(generate(model, stopping_criteria=off), expected)

    assert hooks_on(model) == 0
    assert patched(original) == set()
    (span,) = telemetry.spans()
    assert (span.attributes or {})["corevital.capture.steps"] == 3


def test_may_be_switched_on_while_a_generation_runs(telemetry: Telemetry) -> None:
    model = tiny_model("llama")
    expected = generate(model)
    first_token, switched_on = threading.Event(), threading.Event()
    tokens: list[torch.Tensor] = []

    def wait() -> None:
        first_token.set()
        assert switched_on.wait(60)

    criteria = StoppingCriteriaList([CallsBack(wait)])
    thread = threading.Thread(
        target=lambda: tokens.append(generate(model, stopping_criteria=criteria))
    )
    thread.start()
    assert first_token.wait(60)
    with instrumented(telemetry):
        switched_on.set()
        thread.join()

    assert torch.equal(tokens[0], expected)
    assert telemetry.spans() == []


def test_disabled_leaves_everything_as_it_is(
    telemetry: Telemetry, original: Patchable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COREVITAL_ENABLED", "false")
    with instrumented(telemetry):
        assert patched(original) == set()
        generate(tiny_model("llama"))

    assert patched(original) == set()
    assert telemetry.spans() == []
    assert telemetry.logs() == []
    assert telemetry.metrics() == {}


@pytest.mark.parametrize("source", ["variable", "keyword"])
@pytest.mark.parametrize(("name", "value"), {name: value for name, value, _ in BAD}.items())
def test_a_bad_setting_patches_nothing_and_can_be_corrected(
    source: str,
    name: str,
    value: str,
    telemetry: Telemetry,
    original: Patchable,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if source == "variable":
        monkeypatch.setenv(variable(name), value)
    keywords = {name: value} if source == "keyword" else {}
    named = variable(name) if source == "variable" else name

    with pytest.raises(SettingsError, match=f"^{named}='"):
        CoreVitalInstrumentor().instrument(**keywords)
    assert not CoreVitalInstrumentor().is_instrumented_by_opentelemetry
    assert patched(original) == set()

    monkeypatch.delenv(variable(name), raising=False)
    with instrumented(telemetry):
        assert patched(original) != set()
    assert patched(original) == set()


def test_an_unknown_setting_patches_nothing(original: Patchable) -> None:
    with pytest.raises(SettingsError, match=r"^captuer: no such setting"):
        CoreVitalInstrumentor().instrument(captuer="off")

    assert not CoreVitalInstrumentor().is_instrumented_by_opentelemetry
    assert patched(original) == set()


def test_depends_on_the_tested_releases_of_transformers() -> None:
    dependencies = CoreVitalInstrumentor().instrumentation_dependencies()

    assert get_dependency_conflicts(dependencies) is None
    declared = metadata.requires("corevital") or []
    extra = [text for text in declared if "extra == 'instruments'" in text]
    specifiers = {text.partition(";")[0].replace(" ", "") for text in extra}
    ranges = {tuple(sorted(text.removeprefix("transformers").split(","))) for text in specifiers}
    assert ranges == {
        tuple(sorted(text.replace(" ", "").removeprefix("transformers").split(",")))
        for text in dependencies
    }


def test_is_found_by_opentelemetry() -> None:
    (entry_point,) = metadata.entry_points(group="opentelemetry_instrumentor", name="corevital")

    assert entry_point.load() is CoreVitalInstrumentor


def test_a_tokenizer_keeps_its_chat_template(telemetry: Telemetry) -> None:
    before = vars(PreTrainedTokenizerBase)["apply_chat_template"]
    with instrumented(telemetry):
        assert vars(PreTrainedTokenizerBase)["apply_chat_template"] is not before
    assert vars(PreTrainedTokenizerBase)["apply_chat_template"] is before


def test_modules_are_called_as_before(telemetry: Telemetry) -> None:
    layer = nn.Linear(2, 2)
    before = layer(torch.ones(2))
    with instrumented(telemetry):
        assert torch.equal(layer(torch.ones(2)), before)
