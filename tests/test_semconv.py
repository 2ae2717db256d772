"""What is emitted is declared, what is declared is emitted, and the documentation says so."""

from __future__ import annotations

import itertools
import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from opentelemetry.sdk.metrics.export import Gauge, Histogram, HistogramDataPoint, Sum
from transformers import TextStreamer

import corevital
from corevital import semconv
from corevital.semconv import Place, Type
from docs.generate_telemetry import (
    EVALUATION_ATTRIBUTES,
    STANDARD_ATTRIBUTES,
    STANDARD_METRICS,
    TARGET,
    page,
)
from tests.batching import PROMPTS, started
from tests.calibration.tiny import baseline_file, risk_file
from tests.forcing import forcing
from tests.instrumentation import attributes, instrumented, points
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry, in_memory_telemetry
from tests.smollm2 import LoadedModel
from tests.telemetry.odd_attention import odd_attention

ROOT = Path(__file__).parents[1]
NAME = re.compile(r"corevital(\.[a-z][a-z0-9_]*){2,}")
# Of the generation as a whole, so that there is no area to name.
WITHOUT_AREA = {"corevital.narrative"}
UNIT = re.compile(r"|1|s|bit|\{[a-z]+\}")

VALUES: Mapping[Type, type] = {
    Type.STRING: str,
    Type.BOOLEAN: bool,
    Type.INT: int,
    Type.DOUBLE: float,
    Type.STRINGS: str,
    Type.INTS: int,
    Type.DOUBLES: float,
}


def is_of(type_: Type, value: Any) -> bool:
    if type_.value.endswith("[]"):
        return isinstance(value, tuple) and all(type(each) is VALUES[type_] for each in value)
    return type(value) is VALUES[type_]


# What is declared


@pytest.mark.parametrize("attribute", semconv.ATTRIBUTES, ids=lambda attribute: attribute.name)
def test_attributes_are_named_by_area_and_thing(attribute: semconv.Attribute) -> None:
    assert NAME.fullmatch(attribute.name) or attribute.name in WITHOUT_AREA
    assert UNIT.fullmatch(attribute.unit)
    assert attribute.brief.endswith(".")
    assert attribute.places != ()


@pytest.mark.parametrize("metric", semconv.METRICS, ids=lambda metric: metric.name)
def test_metrics_are_named_by_area_and_thing(metric: semconv.Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert UNIT.fullmatch(metric.unit)
    assert metric.unit != ""
    assert metric.brief.endswith(".")


@pytest.mark.parametrize("metric", semconv.METRICS, ids=lambda metric: metric.name)
def test_histograms_have_ascending_boundaries(metric: semconv.Metric) -> None:
    assert metric.instrument in ("histogram", "counter", "updowncounter", "gauge")
    assert (metric.buckets != ()) == (metric.instrument == "histogram")
    assert all(lower < upper for lower, upper in itertools.pairwise(metric.buckets))


@pytest.mark.parametrize("event", semconv.EVENTS, ids=lambda event: event.name)
def test_events_are_named_after_what_they_describe(event: semconv.Event) -> None:
    assert re.fullmatch(r"corevital\.[a-z]+", event.name)
    assert event.brief.endswith(".")
    assert any(event.name in attribute.places for attribute in semconv.ATTRIBUTES)


def namespaces(names: set[str]) -> set[str]:
    parts = [name.split(".") for name in names]
    return {".".join(each[:length]) for each in parts for length in range(1, len(each))}


@pytest.mark.parametrize("place", Place)
def test_no_attribute_is_the_namespace_of_another_in_its_place(place: Place) -> None:
    # Some stores turn dots into objects, and there a name cannot have a value and parts.
    names = {each.name for each in semconv.ATTRIBUTES if place in each.places}
    assert names != set()
    assert names & namespaces(names) == set()


def test_no_metric_is_the_namespace_of_another() -> None:
    names = {metric.name for metric in semconv.METRICS}
    assert names & namespaces(names) == set()


# What is emitted


def generate(model: GenerativeModel, inputs: Any = None, **options: Any) -> None:
    given = {"inputs": tiny_prompt()} if inputs is None else inputs
    model.generate(**given, **({"max_new_tokens": 6, "do_sample": False} | options))


def model_with(change: Callable[[Any], None], **config: int) -> GenerativeModel:
    model = tiny_model("llama", **config)
    with torch.no_grad():
        change(model)
    return model


def break_layer(model: Any) -> None:
    model.model.layers[2].mlp.down_proj.weight.fill_(math.nan)


def collapse_attention(model: Any) -> None:
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.mul_(1000.0)


def encoder_with_nan() -> GenerativeModel:
    model: Any = tiny_model("bart")
    with torch.no_grad():
        model.get_encoder().layers[1].fc2.weight.fill_(math.nan)
    return cast(GenerativeModel, model)


def generate_everything(loaded: LoadedModel) -> None:
    """Generations that between them show everything that CoreVital can say."""
    speaker = tiny_model("llama", vocab_size=len(loaded.tokenizer))
    streamer = TextStreamer(loaded.tokenizer)
    generate(speaker, loaded.chat("Why are zebras striped?"), streamer=streamer)
    torch.manual_seed(0)
    generate(
        speaker,
        loaded.chat("Why are zebras striped?"),
        do_sample=True,
        temperature=0.9,
        top_k=50,
        top_p=0.9,
        num_return_sequences=2,
        stop_strings=["\n\n\n"],
        tokenizer=loaded.tokenizer,
    )
    # More layers at fault than a span names.
    generate(model_with(break_layer, num_hidden_layers=16))
    generate(model_with(collapse_attention), max_new_tokens=12)
    loop = [40, 41, 42] * 64 + [50]
    generate(tiny_model("llama"), max_new_tokens=len(loop), logits_processor=forcing(loop))
    generate(tiny_model("llama"), num_beams=2)
    generate(tiny_model("bart"))
    generate(encoder_with_nan())
    with corevital.intervene(["repetition", "non_finite"]):
        generate(model_with(break_layer), max_new_tokens=20)
        generate(tiny_model("llama"), num_beams=2)
    with pytest.raises(ValueError, match="max_new_tokens"):
        generate(tiny_model("llama"), max_new_tokens=-1)
    with odd_attention() as name:
        generate(tiny_model("llama", attn_implementation=name))


class Emitted:
    """Everything that was emitted, by place and name."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.own: dict[tuple[Place, str], list[Any]] = {}
        self.standard: dict[str, list[Any]] = {}
        self.evaluations: dict[str, list[Any]] = {}
        self.events: set[str] = set()
        self.metrics = telemetry.metrics()
        self.on_metrics: set[str] = set()
        for span in telemetry.spans():
            self._add(Place.SPAN, attributes(span), self.standard)
            for event in span.events:
                self._add_event(event.name, attributes(event))
        for log in telemetry.logs():
            self._add_event(str(log.log_record.event_name), dict(log.log_record.attributes or {}))
        for metric in self.metrics.values():
            for point in points(metric):
                others: dict[str, list[Any]] = {}
                self._add(Place.METRIC, dict(point.attributes or {}), others)
                self.on_metrics |= others.keys()

    def _add_event(self, name: str, found: Mapping[str, Any]) -> None:
        self.events.add(name)
        if name.startswith("corevital."):
            self._add(Place(name), found, {})
        elif name == "gen_ai.evaluation.result":
            self._add(Place.SPAN, found, self.evaluations)

    def _add(self, place: Place, found: Mapping[str, Any], others: dict[str, list[Any]]) -> None:
        for name, value in found.items():
            if name.startswith("corevital."):
                self.own.setdefault((place, name), []).append(value)
            else:
                others.setdefault(name, []).append(value)


@pytest.fixture(scope="module")
def emitted(smollm2: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emitted]:
    folder = tmp_path_factory.mktemp("calibration")
    calibration = [make(tiny_model("llama"), folder) for make in (baseline_file, risk_file)]
    with in_memory_telemetry() as telemetry, pytest.MonkeyPatch.context() as environment:
        environment.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_and_event")
        with instrumented(telemetry, step_events="both"):
            generate_everything(smollm2)
        with instrumented(telemetry, capture="on_risk"):
            generate(tiny_model("llama"), max_new_tokens=30)
        with instrumented(telemetry, capture="summary", step_events="none"):
            generate(tiny_model("gpt2"))
        with instrumented(telemetry, prompt=False, step_events="none"):
            # With room for the numbers behind its signals.
            generate(model_with(collapse_attention), max_new_tokens=12)
        with instrumented(telemetry, calibration=calibration):
            generate(tiny_model("llama"))
            generate(tiny_model("gpt2"))
        with instrumented(telemetry), started(tiny_model("llama")) as manager:
            manager.add_request(PROMPTS[0], max_new_tokens=2)
            assert manager.get_result(timeout=30) is not None
            everything = Emitted(telemetry)
        yield everything


DECLARED = {
    (place, attribute.name): attribute
    for attribute in semconv.ATTRIBUTES
    for place in attribute.places
}


def test_everything_emitted_is_declared(emitted: Emitted) -> None:
    own = {name for name in (*emitted.events, *emitted.metrics) if name.startswith("corevital.")}

    assert emitted.own.keys() - DECLARED.keys() == set()
    declared = {event.name for event in semconv.EVENTS}
    assert own <= declared | {metric.name for metric in semconv.METRICS}


def test_everything_declared_is_emitted(emitted: Emitted) -> None:
    assert DECLARED.keys() - emitted.own.keys() == set()
    assert {event.name for event in semconv.EVENTS} - emitted.events == set()
    assert {metric.name for metric in semconv.METRICS} - emitted.metrics.keys() == set()


def test_values_are_of_the_declared_type(emitted: Emitted) -> None:
    for key in emitted.own.keys() & DECLARED.keys():
        wrong = [value for value in emitted.own[key] if not is_of(DECLARED[key].type, value)]
        assert wrong == [], key


def test_metrics_are_as_they_are_declared(emitted: Emitted) -> None:
    kinds = {"histogram": Histogram, "counter": Sum, "updowncounter": Sum, "gauge": Gauge}
    for metric in (*semconv.METRICS, *STANDARD_METRICS):
        found = emitted.metrics[metric.name]
        assert isinstance(found.data, kinds[metric.instrument])
        if isinstance(found.data, Sum):
            assert found.data.is_monotonic == (metric.instrument == "counter")
        assert found.unit == metric.unit
        for point in points(found):
            if isinstance(point, HistogramDataPoint):
                assert tuple(point.explicit_bounds) == metric.buckets, metric.name


# What is documented


def test_standard_attributes_are_documented_with_their_type(emitted: Emitted) -> None:
    for documented, found in (
        (STANDARD_ATTRIBUTES, emitted.standard),
        (EVALUATION_ATTRIBUTES, emitted.evaluations),
    ):
        assert found.keys() == {each.name for each in documented}
        for each in documented:
            assert [v for v in found[each.name] if not is_of(each.type, v)] == [], each.name
    common = {"gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model"}
    assert emitted.on_metrics == common | {"gen_ai.token.type", "error.type"}


def test_standard_events_and_metrics_are_documented(emitted: Emitted) -> None:
    text = page()
    names = {*emitted.events, *emitted.metrics}

    assert {name for name in names if f"`{name}`" not in text} == set()
    others = {name for name in emitted.metrics if not name.startswith("corevital.")}
    assert others == {metric.name for metric in STANDARD_METRICS}


def test_the_documentation_is_up_to_date() -> None:
    command = [sys.executable, "docs/generate_telemetry.py", "--check"]
    checked = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)

    assert (checked.returncode, checked.stdout) == (0, "")
    assert TARGET.read_text(encoding="utf-8") == page()


def test_documentation_that_is_not_up_to_date_is_told_and_can_be_written(tmp_path: Path) -> None:
    generator = tmp_path / "generate_telemetry.py"
    generator.write_bytes(TARGET.with_name(generator.name).read_bytes())
    command = [sys.executable, str(generator)]
    missing = subprocess.run([*command, "--check"], check=False, capture_output=True, text=True)
    subprocess.run(command, check=True)
    written = subprocess.run([*command, "--check"], check=False)

    assert missing.returncode == 1
    assert "telemetry.md is not up to date" in missing.stdout
    assert written.returncode == 0
    assert (tmp_path / "telemetry.md").read_text(encoding="utf-8") == page()
