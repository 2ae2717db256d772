"""Servers are found where they are, start, answer, and are stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration import servers
from tests.integration.conftest import StartCollector, StartPrometheus
from tests.integration.programs import KINDS, REQUIRE, Program, find, require
from tests.integration.running import RUNNING, answers, free_port, listens, run
from tests.integration.servers import Loki, Prometheus, TraceStore


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


class TestFinding:
    def test_the_variable_comes_before_the_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        on_path = program(tmp_path / "loki")
        named = program(tmp_path / "my-loki")
        monkeypatch.setenv("PATH", str(tmp_path))

        monkeypatch.delenv("COREVITAL_TEST_LOKI", raising=False)
        assert find(KINDS["loki"]) == Program(KINDS["loki"], on_path)

        monkeypatch.setenv("COREVITAL_TEST_LOKI", str(named))
        assert find(KINDS["loki"]) == Program(KINDS["loki"], named)

    def test_a_variable_that_names_no_program_is_an_error(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("COREVITAL_TEST_LOKI", str(tmp_path / "nothing"))

        with pytest.raises(FileNotFoundError, match="COREVITAL_TEST_LOKI"):
            find(KINDS["loki"])

    @pytest.mark.usefixtures("nowhere")
    def test_a_test_without_its_server_is_skipped_with_the_reason(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv(REQUIRE, raising=False)

        with pytest.raises(pytest.skip.Exception, match="no loki: COREVITAL_TEST_LOKI is not set"):
            require("loki")

    @pytest.mark.usefixtures("nowhere")
    def test_or_fails_where_servers_are_required(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(REQUIRE, "1")

        with pytest.raises(pytest.fail.Exception, match="no loki"):
            require("loki")
        with pytest.raises(pytest.skip.Exception, match="no tempo"):
            require("tempo")

    @pytest.fixture
    def nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(
            "tests.integration.programs._no_docker_engine", lambda: "there is no Docker engine"
        )
        for name in KINDS:
            monkeypatch.delenv(f"COREVITAL_TEST_{name.upper()}", raising=False)


class TestRunning:
    def test_a_server_that_does_not_start_says_why(self, tmp_path: Path) -> None:
        broken = tmp_path / "broken.yaml"
        broken.write_text("exporters: {nonsense: {}}")

        with (
            pytest.raises(RuntimeError, match="unknown type"),
            servers.collector([broken], tmp_path),
        ):
            pytest.fail("a Collector started on nonsense")
        assert [server for server in RUNNING if server.name == "otelcol"] == []

    def test_a_server_is_stopped_when_the_block_fails(self, tmp_path: Path) -> None:
        started: list[Prometheus] = []

        def fail() -> None:
            with servers.prometheus(tmp_path) as prometheus:
                started.append(prometheus)
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not started[0].server.alive()
        assert not answers(f"{started[0].url}/-/ready")

    def test_a_killed_server_can_be_started_again_on_its_ports(
        self, start_collector: StartCollector, tmp_path: Path
    ) -> None:
        configuration = tmp_path / "nop.yaml"
        configuration.write_text(json.dumps(NOP))
        ports = (free_port(), free_port())

        first = start_collector(configuration, ports=ports)
        first.server.kill()
        assert not first.server.alive()
        assert not listens(ports[0])

        again = start_collector(configuration, ports=ports)
        assert again.server.alive()
        assert listens(ports[0])

    def test_a_tool_is_run_to_its_end(self, promtool: Program, tmp_path: Path) -> None:
        result = run(promtool, "--version", folder=tmp_path)

        assert result.returncode == 0
        assert "promtool" in result.stdout


class TestEachServerAnswers:
    def test_prometheus(self, start_prometheus: StartPrometheus) -> None:
        assert answers(f"{start_prometheus().url}/api/v1/query?query=vector(1)")

    def test_alertmanager(self, tmp_path: Path) -> None:
        configuration = tmp_path / "alertmanager.yaml"
        configuration.write_text("{route: {receiver: none}, receivers: [{name: none}]}")

        with servers.alertmanager(tmp_path, configuration) as alertmanager:
            assert answers(f"{alertmanager.url}/api/v2/status")

    def test_jaeger(self, jaeger: TraceStore) -> None:
        assert answers(f"{jaeger.url}/api/services")

    def test_loki(self, loki: Loki) -> None:
        assert answers(f"{loki.url}/loki/api/v1/labels")

    def test_tempo(self, tempo: TraceStore) -> None:
        assert answers(f"{tempo.url}/api/search/tags")


NOP = {
    "receivers": {
        "otlp": {
            "protocols": {
                "grpc": {"endpoint": "${env:OTLP_GRPC_ENDPOINT}"},
                "http": {"endpoint": "${env:OTLP_HTTP_ENDPOINT}"},
            }
        }
    },
    "exporters": {"nop": None},
    "service": {"pipelines": {"traces": {"receivers": ["otlp"], "exporters": ["nop"]}}},
}
