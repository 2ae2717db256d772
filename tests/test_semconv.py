"""What is emitted is declared, what is declared is emitted, and the documentation says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from corevital import semconv
from corevital.semconv import Attribute, Place, Type
from tests.instrumentation import instrumented
from tests.models import tiny_model, tiny_prompt
from tests.providers import Telemetry

ROOT = Path(__file__).parents[1]
STANDARD = ("gen_ai.", "error.", "server.")

PYTHON_TYPES: dict[Type, type] = {
    Type.STRING: str,
    Type.BOOLEAN: bool,
    Type.INT: int,
    Type.DOUBLE: float,
    Type.STRINGS: str,
    Type.INTS: int,
    Type.DOUBLES: float,
}
# Only risky, broken or unusual generations have these.
RARE = {
    "corevital.capture.failures",
    "corevital.capture.full_from_step",
    "corevital.step.non_finite_layers",
    "corevital.step.token.text",
}


def fits(declared: Attribute, value: Any) -> bool:
    kind = PYTHON_TYPES[declared.type]
    if declared.type.endswith("[]"):
        return isinstance(value, tuple) and all(type(each) is kind for each in value)
    return type(value) is kind


@pytest.fixture
def emitted(telemetry: Telemetry) -> dict[Place, dict[str, Any]]:
    """Attributes by place, of a single generation and of a batch."""
    model = tiny_model("llama")
    with instrumented(telemetry):
        model.generate(tiny_prompt(), max_new_tokens=12, do_sample=False)
        torch.manual_seed(0)
        model.generate(tiny_prompt(batch=2), max_new_tokens=12, do_sample=True)
    found: dict[Place, dict[str, Any]] = {place: {} for place in Place}
    for span in telemetry.spans():
        found[Place.SPAN] |= dict(span.attributes or {})
        for event in span.events:
            found[Place(event.name)] |= dict(event.attributes or {})
    return found


def test_what_is_emitted_is_declared_with_its_type(
    emitted: dict[Place, dict[str, Any]],
) -> None:
    declared = {each.name: each for each in semconv.ATTRIBUTES}
    for place, attributes in emitted.items():
        for name, value in attributes.items():
            if not name.startswith(STANDARD):
                assert place in declared[name].places, name
                assert fits(declared[name], value), (name, value)


def test_what_is_declared_is_emitted(emitted: dict[Place, dict[str, Any]]) -> None:
    for each in semconv.ATTRIBUTES:
        for place in each.places:
            if place is not Place.METRIC and each.name not in RARE:
                assert each.name in emitted[place], (each.name, place)


def test_every_emitted_metric_is_declared_with_its_unit(telemetry: Telemetry) -> None:
    with instrumented(telemetry):
        tiny_model("llama").generate(tiny_prompt(), max_new_tokens=12, do_sample=False)
    declared = {each.name: each for each in semconv.METRICS}
    found = {name: metric for name, metric in telemetry.metrics().items() if "corevital" in name}
    assert found
    for name, metric in found.items():
        assert metric.unit == declared[name].unit


@pytest.mark.parametrize("place", list(Place))
def test_no_name_is_also_a_namespace(place: Place) -> None:
    names = [each.name for each in semconv.ATTRIBUTES if place in each.places]
    assert [a for a in names for b in names if b.startswith(f"{a}.")] == []


def test_names_follow_the_pattern() -> None:
    for each in semconv.ATTRIBUTES:
        assert each.name.startswith("corevital."), each.name
        assert each.name == each.name.lower()


def test_the_documentation_is_up_to_date() -> None:
    command = [sys.executable, "docs/generate_telemetry.py", "--check"]
    finished = subprocess.run(command, cwd=ROOT, check=False)
    assert finished.returncode == 0, "run python docs/generate_telemetry.py"
