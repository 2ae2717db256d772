"""Fixtures for real servers; see ``programs.py`` for where they are looked for."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.integration import servers
from tests.integration.programs import Program, require
from tests.integration.running import RUNNING
from tests.integration.servers import Collector, Loki, Prometheus, TraceStore

_MOST_OUTPUT: Final = 8000

StartCollector = Callable[..., Collector]
StartPrometheus = Callable[..., Prometheus]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the servers wrote beside a test that failed."""
    report = yield
    if report.failed:
        for server in RUNNING:
            report.sections.append((f"output of {server.name}", server.output()[-_MOST_OUTPUT:]))
    return report


@pytest.fixture(scope="session")
def promtool() -> Program:
    """``promtool``, to be run with ``running.run``."""
    return require("promtool")


@pytest.fixture(scope="session")
def amtool() -> Program:
    """``amtool``, to be run with ``running.run``."""
    return require("amtool")


@pytest.fixture(scope="session")
def otelcol() -> Program:
    """The Collector as a program, for ``otelcol validate``."""
    return require("otelcol")


@pytest.fixture
def start_collector(tmp_path: Path) -> Iterator[StartCollector]:
    """Start Collectors, ``start_collector(file, ..., environment={...})``, until the test ends."""
    require("otelcol")
    with ExitStack() as stack:

        def start(*configurations: Path, **keywords: Any) -> Collector:
            return stack.enter_context(servers.collector(configurations, tmp_path, **keywords))

        yield start


@pytest.fixture
def start_prometheus(tmp_path: Path) -> Iterator[StartPrometheus]:
    """Start a Prometheus, ``start_prometheus(configuration, argument, ...)``, for the test."""
    require("prometheus")
    with ExitStack() as stack:

        def start(*arguments: Any) -> Prometheus:
            return stack.enter_context(servers.prometheus(tmp_path, *arguments))

        yield start


@pytest.fixture(scope="session")
def loki(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loki]:
    """One Loki for all tests: tell your logs by their service name."""
    with servers.loki(tmp_path_factory.mktemp("loki")) as server:
        yield server


@pytest.fixture(scope="session")
def jaeger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceStore]:
    """One Jaeger for all tests: tell your traces by their service name."""
    with servers.jaeger(tmp_path_factory.mktemp("jaeger")) as server:
        yield server


@pytest.fixture(scope="session")
def tempo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TraceStore]:
    """One Tempo for all tests: tell your traces by their service name."""
    with servers.tempo(tmp_path_factory.mktemp("tempo")) as server:
        yield server
