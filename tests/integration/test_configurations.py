"""Every configuration is accepted by the program that it is for."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from tests.integration.programs import Program
from tests.integration.running import run
from tests.integration.servers import COLLECTOR_CONFIG

RULE_TESTS = list(COLLECTOR_CONFIG.glob("*.test.yaml"))
STAGES = ("alerts.yaml", "privacy.yaml", "sampling.yaml")
BACKENDS = sorted(
    str(path.relative_to(COLLECTOR_CONFIG)) for path in (COLLECTOR_CONFIG / "backends").iterdir()
)
# Their exporters are in the contrib distribution only.
CONTRIB = {"backends/clickhouse.yaml", "backends/datadog.yaml"}
HERE = [name for name in BACKENDS if name not in CONTRIB]
KEYS = dict.fromkeys(
    ("GRAFANA_CLOUD_AUTH", "LANGFUSE_AUTH", "WANDB_API_KEY", "WANDB_ENTITY", "WANDB_PROJECT"), "x"
)


def complaints(otelcol: Program, folder: Path, *names: str) -> str:
    """What the Collector says against files, after the first that all need."""
    files = [COLLECTOR_CONFIG / name for name in ("collector.yaml", *names)]
    result = run(
        otelcol,
        "validate",
        *(f"--config={file}" for file in files),
        folder=folder,
        environment=KEYS,
    )
    return result.stdout.strip() if result.returncode else ""


def test_the_collector_takes_the_first_file_alone(otelcol: Program, tmp_path: Path) -> None:
    assert complaints(otelcol, tmp_path) == ""


@pytest.mark.parametrize("name", [*STAGES, *HERE])
def test_the_collector_takes_each_with_the_first(
    otelcol: Program, tmp_path: Path, name: str
) -> None:
    assert complaints(otelcol, tmp_path, name) == ""


@pytest.mark.parametrize("order", list(itertools.permutations(STAGES)))
def test_the_collector_takes_all_in_any_order(
    otelcol: Program, tmp_path: Path, order: tuple[str, ...]
) -> None:
    assert complaints(otelcol, tmp_path, *order, *HERE) == ""


def test_the_collector_would_refuse_an_error(otelcol: Program, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("service: {pipelines: {traces/kept: {exporters: [nowhere]}}}")

    assert "nowhere" in complaints(otelcol, tmp_path, str(wrong))


def test_prometheus_takes_the_rules(promtool: Program, tmp_path: Path) -> None:
    result = run(
        promtool, "check", "rules", COLLECTOR_CONFIG / "prometheus-rules.yaml", folder=tmp_path
    )

    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("name", sorted(path.name for path in RULE_TESTS))
def test_each_rule_fires_when_it_should(promtool: Program, tmp_path: Path, name: str) -> None:
    result = run(promtool, "test", "rules", COLLECTOR_CONFIG / name, folder=tmp_path)

    assert result.returncode == 0, result.stdout


def test_alertmanager_takes_its_configuration(amtool: Program, tmp_path: Path) -> None:
    result = run(amtool, "check-config", COLLECTOR_CONFIG / "alertmanager.yaml", folder=tmp_path)

    assert result.returncode == 0, result.stdout
