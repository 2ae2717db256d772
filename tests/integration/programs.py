"""Finds the programs of real servers on this machine.

Each is looked for in this order: the path in ``COREVITAL_TEST_NAME`` (``COREVITAL_TEST_OTELCOL``
and so on), a binary on ``PATH``, a container image where a Docker engine answers. A test for which
none is found is skipped and says so; with ``COREVITAL_TEST_REQUIRE_SERVERS=1`` it fails instead.
"""

from __future__ import annotations

import functools
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

REQUIRE: Final = "COREVITAL_TEST_REQUIRE_SERVERS"


@dataclass(frozen=True, slots=True)
class Kind:
    """A program; ``image`` has it at ``entrypoint``."""

    name: str
    binaries: tuple[str, ...]
    image: str
    entrypoint: str
    may_be_required: bool = True


_OTELCOL: Final = "otel/opentelemetry-collector-contrib:0.155.0"
_PROMETHEUS: Final = "prom/prometheus:v3.15.0"
_ALERTMANAGER: Final = "prom/alertmanager:v0.34.2"

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("otelcol", ("otelcol-contrib", "otelcol"), _OTELCOL, "/otelcol-contrib"),
        Kind("prometheus", ("prometheus",), _PROMETHEUS, "/bin/prometheus"),
        Kind("promtool", ("promtool",), _PROMETHEUS, "/bin/promtool"),
        Kind("alertmanager", ("alertmanager",), _ALERTMANAGER, "/bin/alertmanager"),
        Kind("amtool", ("amtool",), _ALERTMANAGER, "/bin/amtool"),
        Kind("loki", ("loki",), "grafana/loki:3.7.8", "/usr/bin/loki"),
        Kind("jaeger", ("jaeger",), "jaegertracing/jaeger:2.13.0", "/cmd/jaeger/jaeger-linux"),
        Kind("tempo", ("tempo",), "grafana/tempo:2.9.0", "/tempo", may_be_required=False),
    )
}


@dataclass(frozen=True, slots=True)
class Program:
    """A program that can be started: a binary, or where ``binary`` is None its container."""

    kind: Kind
    binary: Path | None


def require(name: str) -> Program:
    """Return the program, or skip the test; KeyError for a name that is not in ``KINDS``."""
    kind = KINDS[name]
    found = find(kind)
    if isinstance(found, Program):
        return found
    if kind.may_be_required and os.environ.get(REQUIRE) == "1":
        pytest.fail(f"{REQUIRE}=1, but {found}", pytrace=False)
    pytest.skip(found)


def find(kind: Kind) -> Program | str:
    """Return the program, or why there is none.

    A path in the environment that names no file is an error, not a reason to look elsewhere.
    """
    variable = f"COREVITAL_TEST_{kind.name.upper()}"
    if given := os.environ.get(variable):
        if not os.access(given, os.X_OK):
            raise FileNotFoundError(f"{variable}={given} is not a program")
        return Program(kind, Path(given))
    for binary in kind.binaries:
        if (on_path := shutil.which(binary)) is not None:
            return Program(kind, Path(on_path))
    if (obstacle := _no_docker_engine()) is None:
        return Program(kind, None)
    return f"no {kind.name}: {variable} is not set, it is not on PATH, and {obstacle}"


@functools.cache
def _no_docker_engine() -> str | None:
    # The client leaks a socket where there is no engine, and a leak fails a test.
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").exists():
        return "there is no Docker engine"
    try:
        from docker.errors import DockerException
        from testcontainers.core.docker_client import DockerClient
    except ImportError:
        return "testcontainers is not installed"
    try:
        DockerClient().client.ping()
    except DockerException as error:
        return f"no Docker engine answers ({error})"
    return None
