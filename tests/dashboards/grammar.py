"""TraceQL as Grafana's own grammar reads it (the npm package ``@grafana/lezer-traceql``)."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

_SOURCE: Final = Path(__file__).with_name("traceql")
_CACHE: Final = "COREVITAL_CACHE"
_LITERALS: Final = {"Float": "double", "Integer": "int", "String": "string"}


@dataclass(frozen=True, slots=True)
class Comparison:
    """An attribute that is compared with a literal; ``type`` is the literal's."""

    attribute: str
    operator: str
    type: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """One query: its syntax errors, the span attributes it names, and what it compares them with.

    Attributes are without their scope.
    """

    errors: list[str]
    attributes: set[str]
    comparisons: list[Comparison]


def parse(queries: Sequence[str]) -> list[Parsed]:
    """Parse queries; skips the test, with the reason, where the grammar cannot be had."""
    folder = _installed()
    done = subprocess.run(
        ["node", "parse.mjs"],
        cwd=folder,
        input=json.dumps(queries),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return [_read(nodes) for nodes in json.loads(done.stdout)]


def _installed() -> Path:
    """The folder with the script and its packages, installed once for all runs."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("node and npm are not on PATH")
    content = b"".join(path.read_bytes() for path in sorted(_SOURCE.iterdir()))
    name = f"traceql-{hashlib.sha256(content).hexdigest()[:16]}"
    base = Path(os.environ.get(_CACHE) or Path.home() / ".cache" / "corevital")
    folder = base / name
    if (folder / "installed").exists():
        return folder
    shutil.copytree(_SOURCE, folder, dirs_exist_ok=True)
    done = subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the grammar: {done.stderr[-500:]}")
    (folder / "installed").touch()
    return folder


def _read(nodes: list[dict[str, str]]) -> Parsed:
    errors = [node["text"] for node in nodes if node["error"]]
    return Parsed(errors, _attributes(nodes), list(_comparisons(nodes)))


def _attributes(nodes: list[dict[str, str]]) -> set[str]:
    fields = [node["text"] for node in nodes if node["name"] == "AttributeField"]
    return {text.removeprefix("span.") for text in fields if text.startswith("span.")}


def _comparisons(nodes: list[dict[str, str]]) -> Iterator[Comparison]:
    # Nodes come in the order of the text: a field, an operator, a literal and its type.
    field = operator = None
    for node, after in zip(nodes, [*nodes[1:], {"name": "", "text": ""}], strict=True):
        match node["name"]:
            case "AttributeField" | "IntrinsicField":
                field, operator = node["text"], None
            case "FieldOp":
                operator = node["text"]
            case "Static" if field and operator and field.startswith("span."):
                is_boolean = node["text"] in {"true", "false"}
                type_ = "boolean" if is_boolean else _LITERALS[after["name"]]
                yield Comparison(field.removeprefix("span."), operator, type_)
                field = operator = None
