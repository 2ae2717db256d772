"""The compose stack: what it mounts exists, what it names fits together, its demo generates."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import AutoTokenizer

from tests.examples.programs import EXAMPLES, ROOT, python, run
from tests.integration.programs import KINDS, Program, require
from tests.integration.running import run as run_tool
from tests.models import tiny_model
from tests.otlp_receiver import OtlpReceiver

STACK = EXAMPLES / "stack"
COMPOSE = yaml.safe_load((STACK / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
FIELDS = {
    "build",
    "command",
    "depends_on",
    "environment",
    "image",
    "ports",
    "restart",
    "user",
    "volumes",
}
MOUNTS = [
    pytest.param(name, *volume.split(":")[:2], id=f"{name}: {volume}")
    for name, service in SERVICES.items()
    for volume in service.get("volumes", [])
]


def read(name: str) -> Any:
    return yaml.safe_load((STACK / name).read_text())


def test_what_is_asked_for_is_there() -> None:
    assert {
        "demo",
        "collector",
        "tempo",
        "prometheus",
        "alertmanager",
        "loki",
        "grafana",
    } < SERVICES.keys()
    assert all(service.keys() <= FIELDS for service in SERVICES.values())
    assert {name for each in SERVICES.values() for name in each.get("depends_on", [])} < set(
        SERVICES
    )


def test_versions_are_pinned_and_those_that_the_tests_use() -> None:
    images = {name: each["image"] for name, each in SERVICES.items() if "image" in each}
    tested = {name: KINDS[name].image for name in images if name in KINDS}

    assert all(re.fullmatch(r"[\w./-]+:v?\d+\.\d+[\w.-]*", image) for image in images.values())
    assert tested.keys() == {"tempo", "prometheus", "alertmanager", "loki"}
    assert {name: images[name] for name in tested} == tested
    assert images["collector"] == KINDS["otelcol"].image
    dockerfile = (STACK / "Dockerfile").read_text()
    assert set(re.findall(r"(torch|transformers)==\d", dockerfile)) == {"torch", "transformers"}


@pytest.mark.parametrize(("service", "source", "target"), MOUNTS)
def test_what_is_mounted_exists(service: str, source: str, target: str) -> None:
    if source.startswith("."):
        assert (STACK / source).resolve().exists()
    else:
        assert source in COMPOSE["volumes"]
    assert target.startswith("/")


@pytest.mark.parametrize("service", ["collector", "tempo", "prometheus", "alertmanager", "loki"])
def test_a_configuration_that_is_named_is_mounted(service: str) -> None:
    named = re.findall(r"config(?:\.file)?=(\S+)", " ".join(SERVICES[service]["command"]))
    mounted = dict(volume.split(":")[1::-1] for volume in SERVICES[service]["volumes"])

    assert named
    for path in map(Path, named):
        whole, parent = mounted.get(str(path)), mounted.get(str(path.parent))
        assert whole or (STACK / str(parent) / path.name).is_file()


def test_ports_are_open_to_this_machine_only() -> None:
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]

    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_services_find_each_other() -> None:
    collector = (ROOT / "collector-config" / "collector.yaml").read_text()
    defaults = dict(re.findall(r"\$\{env:(\w+):-([^}]*)\}", collector))
    (receiver,) = read("tempo.yaml")["distributor"]["receivers"].values()
    grafana = SERVICES["grafana"]["environment"]
    (scraped,) = read("prometheus.yaml")["scrape_configs"]

    assert defaults["TEMPO_ENDPOINT"] == "tempo:4317"
    assert receiver["protocols"]["grpc"]["endpoint"] == "0.0.0.0:4317"
    assert defaults["PROMETHEUS_OTLP_ENDPOINT"] == "http://prometheus:9090/api/v1/otlp"
    assert "--web.enable-otlp-receiver" in SERVICES["prometheus"]["command"]
    assert defaults["LOKI_OTLP_ENDPOINT"] == "http://loki:3100/otlp"
    assert grafana["LOKI_URL"] == f"http://loki:{read('loki.yaml')['server']['http_listen_port']}"
    tempo_port = read("tempo.yaml")["server"]["http_listen_port"]
    assert grafana["TEMPO_URL"] == f"http://tempo:{tempo_port}"
    port = SERVICES["collector"]["environment"]["ALERT_METRICS_ENDPOINT"].rpartition(":")[2]
    assert scraped["static_configs"] == [{"targets": [f"collector:{port}"]}]


def test_prometheus_accepts_its_configuration(promtool: Program, tmp_path: Path) -> None:
    for path in (
        STACK / "prometheus.yaml",
        ROOT / "collector-config" / "prometheus-rules.yaml",
    ):
        shutil.copy(path, tmp_path)
    result = run_tool(promtool, "check", "config", tmp_path / "prometheus.yaml", folder=tmp_path)

    assert result.returncode == 0, result.stdout


def test_loki_accepts_its_configuration(tmp_path: Path) -> None:
    loki = require("loki")
    configuration = tmp_path / "loki.yaml"
    text = (STACK / "loki.yaml").read_text()
    configuration.write_text(text.replace(": /loki", f": {tmp_path}/loki"))
    result = run_tool(loki, "-verify-config", f"-config.file={configuration}", folder=tmp_path)

    assert result.returncode == 0, result.stdout


@pytest.fixture
def promtool() -> Program:
    return require("promtool")


def test_the_image_has_what_its_file_copies() -> None:
    build = SERVICES["demo"]["build"]
    context = STACK / build["context"]
    dockerfile = (context / build["dockerfile"]).read_text()
    copied = [
        name for line in re.findall(r"^COPY (.*)$", dockerfile, re.M) for name in line.split()[:-1]
    ]

    assert copied
    assert all((context / name).exists() for name in copied)


def test_the_demo_generates_for_two_services(
    model_folder: Path, otlp_grpc: OtlpReceiver, tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    tokenizer.save_pretrained(tmp_path)
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    run(python(STACK / "demo.py", tmp_path, "--rounds", "2"), otlp_grpc)

    spans = otlp_grpc.spans()
    services = [span.resource["service.name"] for span in spans]
    assert sorted(services) == ["batch"] * 2 + ["chat"] * 4
    broken = [span.attributes["corevital.health.nan_or_inf"] for span in spans]
    assert sorted(broken) == [False] * 5 + [True]
    assert otlp_grpc.metrics()["corevital.generation.count"].points
    assert len(otlp_grpc.logs()) == len(spans)
