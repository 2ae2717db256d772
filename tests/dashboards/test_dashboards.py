"""The committed dashboards are those of their source, and can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from corevital import semconv
from corevital.assess import early_warning, signals
from corevital.assess.risk import USUAL_LEVELS
from dashboards.generate import files
from dashboards.names import label, metric
from docs.generate_telemetry import EVALUATION_ATTRIBUTES, STANDARD_ATTRIBUTES, STANDARD_METRICS
from tests.dashboards.panels import FILES, REPOSITORY, choices, load, panels, queries

# Labels that are not attributes of CoreVital's: Prometheus' own, and one of the standard metrics.
OTHER_LABELS = {"job", "le", "gen_ai_token_type"}
GRAFANA = {"__rate_interval", "__range", "__interval", "__auto"}
WORD = re.compile(r"\b(?:corevital|gen_ai)_\w+")
EVERY_PANEL = [
    pytest.param(panel, id=f"{path.stem}: {panel['title']}")
    for path in FILES
    for panel in panels(load(path))
]


def test_the_files_are_what_their_source_writes() -> None:
    wanted = files()

    assert set(FILES) == set(wanted)
    for path, text in wanted.items():
        assert path.read_text(encoding="utf-8") == text, "run python -m dashboards.generate"


def test_there_are_the_four() -> None:
    assert [path.stem for path in FILES] == [
        "fleet-health",
        "generation-explorer",
        "layer-blame",
        "model-comparison",
    ]


@pytest.mark.parametrize("panel", EVERY_PANEL)
def test_a_panel_can_be_read(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith((".", "?"))
    if panel["type"] in {"stat", "timeseries", "bargauge"}:
        counts_records = panel["datasource"]["type"] == "loki"
        assert counts_records or panel["fieldConfig"]["defaults"]["unit"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_do_not_overlap_and_have_numbers_of_their_own(path: Path) -> None:
    found = load(path)["panels"]
    cells = [
        (x, y)
        for at in (panel["gridPos"] for panel in found)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]

    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in found}) == len(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_variable_is_defined_and_used(path: Path) -> None:
    dashboard = load(path)
    defined = [each["name"] for each in dashboard["templating"]["list"]]
    asked = [query for kind in ("prometheus", "tempo", "loki") for query in queries(kind)]
    here = [query for query in asked if query.dashboard == dashboard["title"]]
    used = {name for query in here for name in query.variables()} - GRAFANA
    sources = {panel["datasource"]["uid"][2:-1] for panel in panels(dashboard)}
    of_variables = {
        each["datasource"]["uid"][2:-1]
        for each in dashboard["templating"]["list"]
        if "datasource" in each
    }

    assert len(set(defined)) == len(defined)
    assert used | sources | of_variables == set(defined)
    assert {"service"} < set(defined)


def test_prometheus_is_asked_only_for_what_is_declared() -> None:
    every = (*semconv.METRICS, *STANDARD_METRICS)
    known = {metric(each.name) for each in every if each.instrument == "counter"}
    known |= {
        metric(each.name) + suffix
        for each in every
        if each.instrument == "histogram"
        for suffix in ("_bucket", "_sum", "_count")
    }
    known |= {label(each.name) for each in semconv.ATTRIBUTES}
    known |= {label(each.name) for each in STANDARD_ATTRIBUTES}
    named = {word for query in queries("prometheus") for word in WORD.findall(query.text)}

    assert named - known - OTHER_LABELS == set()
    assert len(named) > 20


def test_loki_is_asked_only_for_what_is_declared() -> None:
    known = {label(each.name) for each in semconv.ATTRIBUTES}
    known |= {label(each.name) for each in EVALUATION_ATTRIBUTES}
    named = {word for query in queries("loki") for word in WORD.findall(query.text)}

    assert named <= known
    assert named


def test_colours_of_a_risk_are_its_levels() -> None:
    dashboard = load(REPOSITORY / "dashboards" / "json" / "fleet-health.json")
    (panel,) = (each for each in panels(dashboard) if each["title"] == "Risk, 95th percentile")
    steps = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]

    assert steps == [None, USUAL_LEVELS.moderate, USUAL_LEVELS.high, USUAL_LEVELS.critical]


def test_the_explorer_offers_every_flag_signal_and_warning() -> None:
    explorer = load(REPOSITORY / "dashboards" / "json" / "generation-explorer.json")
    types = {each.name: each.type for each in semconv.ATTRIBUTES}

    flags = [name for name in types if name.startswith("corevital.health.")]
    raised = {name for name in flags if types[name] is semconv.Type.BOOLEAN}
    assert set(choices(explorer, "flag")) == raised | {semconv.REPETITION_DETECTED}
    assert set(choices(explorer, "signal")) == {*signals.SEVERITY, ".*"}
    assert set(choices(explorer, "warning")) == {*early_warning.SEVERITY, ".*"}


def test_the_alerts_link_to_the_explorer() -> None:
    explorer = load(REPOSITORY / "dashboards" / "json" / "generation-explorer.json")
    rules = (REPOSITORY / "collector-config" / "prometheus-rules.yaml").read_text()

    assert set(re.findall(r"/d/([\w-]+)", rules)) == {explorer["uid"]}


def test_provisioned_sources_link_to_each_other() -> None:
    folder = REPOSITORY / "dashboards" / "provisioning"
    sources = yaml.safe_load((folder / "datasources" / "corevital.yaml").read_text())
    text = (folder / "datasources" / "corevital.yaml").read_text()
    found = {each["uid"]: each["type"] for each in sources["datasources"]}

    assert set(found.values()) == {"prometheus", "tempo", "loki"}
    assert set(re.findall(r"datasourceUid: ([\w-]+)", text)) == set(found)
    asked = re.findall(r"query: (histogram.*)", text)
    assert all("corevital_risk_score_bucket" in each for each in asked)
    # Grafana takes one dollar for a variable of the environment.
    assert set(re.findall(r"(?<!\$)\$\{(\w+)\}", text)) == {
        "PROMETHEUS_URL",
        "TEMPO_URL",
        "LOKI_URL",
    }
    (provider,) = yaml.safe_load((folder / "dashboards" / "corevital.yaml").read_text())[
        "providers"
    ]
    assert provider["options"]["path"] == "/etc/grafana/corevital-dashboards"
