"""The README's programs, run as they stand there, and its claims that code can check."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from corevital import Settings, semconv
from corevital.assess.profile_file import THRESHOLDS, parse_profile
from corevital.cli.arguments import parse
from tests.examples.programs import ROOT, instrumented_from_outside, python, run
from tests.otlp_receiver import OtlpReceiver

README = (ROOT / "README.md").read_text()
PAGES = [README, (ROOT / "examples" / "README.md").read_text()]
HUB_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# What begins like an attribute's name and is none.
OTHER_NAMES = {"corevital.*", "corevital.intervene"}


def blocks(language: str) -> list[str]:
    """The code blocks in one language, in the README's order."""
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def program(number: int, folder: Path, model: Path) -> Path:
    """A Python block as a file, with the model of the Hub replaced by a local one."""
    path = folder / "app.py"
    path.write_text(blocks("python")[number].replace(HUB_MODEL, str(model)))
    return path


def test_app(otlp_grpc: OtlpReceiver, model_folder: Path, tmp_path: Path) -> None:
    command = instrumented_from_outside(
        python(program(0, tmp_path, model_folder)), "--service_name", "my-app"
    )
    assert run(command, otlp_grpc).strip()
    (span,) = otlp_grpc.spans()
    assert span.name == f"chat {model_folder.name}"
    assert span.resource["service.name"] == "my-app"
    assert "corevital.risk.score" in span.attributes


def test_in_code(otlp_grpc: OtlpReceiver, model_folder: Path, tmp_path: Path) -> None:
    assert run(python(program(1, tmp_path, model_folder)), otlp_grpc).strip()
    (span,) = otlp_grpc.spans()
    assert span.name == f"text_completion {model_folder.name}"
    assert "corevital.risk.score" in span.attributes


def test_stop_a_generation(model_folder: Path, tmp_path: Path) -> None:
    printed = run(python(program(2, tmp_path, model_folder)))
    assert 10 < printed.count("so happy") < 30


def test_in_the_same_process(model_folder: Path, tmp_path: Path) -> None:
    printed = run(python(program(3, tmp_path, model_folder)))
    assert re.search(r"^risk [01]\.\d+ \[", printed, re.MULTILINE)
    assert "entropy of each token [" in printed


def test_every_python_block_is_run() -> None:
    assert len(blocks("python")) == 4


def test_the_profile_is_accepted() -> None:
    (example,) = blocks("toml")

    assert parse_profile(example.encode()).thresholds.keys() == THRESHOLDS.keys()


@pytest.mark.parametrize("line", re.findall(r"^corevital .*$", README, re.MULTILINE))
def test_command_line_is_accepted(line: str) -> None:
    assert parse(shlex.split(line)[1:]).model == HUB_MODEL


def test_options_of_the_command_line_exist() -> None:
    section = README.partition("### 3.")[2].partition("### 4.")[0]
    arguments = "run --model M --prompt P --otlp-endpoint http://localhost:4317 --json --svg FILE"
    parse(arguments.split())
    assert set(re.findall(r"--[a-z-]+", section)) <= set(arguments.split())


def test_names_exist() -> None:
    declared = {attribute.name for attribute in semconv.ATTRIBUTES}
    declared |= {event.name for event in semconv.EVENTS}
    declared |= {metric.name for metric in semconv.METRICS}
    named = set(re.findall(r"`(corevital\.[a-z_.*]+)`", README))
    assert named - OTHER_NAMES <= declared
    assert "corevital.risk.score" in named


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).exists(), link
    headings = {
        re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", README, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]+)\)", README)) <= headings


def test_settings_table_is_that_of_the_settings() -> None:
    """On failure: put the expected table into the README."""
    (table,) = re.findall(r"^\| Variable .*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert table.strip() == settings_table()


def settings_table() -> str:
    """The table of all settings, from the fields themselves."""
    schema = Settings.model_json_schema()
    rows = [
        "| Variable | Default | Accepted | Meaning |",
        "|---|---|---|---|",
    ]
    for name, described in schema["properties"].items():
        prefix = str(Settings.model_config["env_prefix"])
        cells = (
            f"`{prefix}{name.upper()}`",
            default(described["default"]),
            accepted(described, schema.get("$defs", {})),
            described["description"],
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def default(value: Any) -> str:
    match value:
        case None | []:
            return "not set"
        case bool():
            return f"`{str(value).lower()}`"
        case float():
            return f"`{value:g}`"
        case _:
            return f"`{value}`"


def accepted(described: dict[str, Any], definitions: dict[str, Any]) -> str:
    """What a setting accepts, from its JSON schema."""
    match described:
        case {"anyOf": [{"type": "string"}, {"format": "path"}, {"type": "null"}]}:
            return "a name or a path"
        case {"anyOf": [alternative, {"type": "null"}]}:
            return accepted(alternative, definitions)
        case {"$ref": str(reference)}:
            return ", ".join(f"`{value}`" for value in definitions[Path(reference).name]["enum"])
        case {"type": "array", "items": {"format": "path"}}:
            return "paths"
        case {"type": "array", "items": {"$ref": str()} as each}:
            return f"any of {accepted(each, definitions)}"
        case {"type": "boolean"}:
            return "`true`, `false`"
        case {"type": "string"}:
            return "a name"
        case {"type": "integer"} | {"type": "number"}:
            kind = "whole number" if described["type"] == "integer" else "number"
            return f"{kind}, {limits(described)}"
    raise AssertionError(f"no words for {described}")


def limits(described: dict[str, Any]) -> str:
    words = {
        "exclusiveMinimum": "above",
        "minimum": "at least",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    return " and ".join(
        f"{word} {described[key]:g}" for key, word in words.items() if key in described
    )
