"""What the files in collector-config name exists, and each alert has its runbook and its tests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics

from corevital import semconv
from corevital.assess import signals

ROOT: Final = Path(__file__).parents[1]
FOLDER: Final = ROOT / "collector-config"
FILES: Final = {str(path.relative_to(FOLDER)): path for path in sorted(FOLDER.rglob("*.yaml"))}
RULES: Final = yaml.safe_load((FOLDER / "prometheus-rules.yaml").read_text())
ALERTS: Final = [rule for group in RULES["groups"] for rule in group["rules"]]
RUNBOOKS: Final = (ROOT / "docs" / "runbooks.md").read_text(encoding="utf-8")

DECLARED: Final = {each.name for each in semconv.ATTRIBUTES} | {
    value for name, value in vars(gen_ai_attributes).items() if name.startswith("GEN_AI_")
}
METRICS: Final = {each.name for each in semconv.METRICS} | {
    value for name, value in vars(gen_ai_metrics).items() if name.startswith("GEN_AI_")
}
EVENTS: Final = {each.name for each in semconv.EVENTS}
# Not preceded by a letter or dot, so not a part of another name.
DOTTED: Final = re.compile(r"(?<![\w.])(?:corevital|gen_ai)(?:\.[a-z_]+)+(?![\w(*\\])")


@pytest.mark.parametrize(
    "path", [*FILES.values(), FOLDER / "README.md"], ids=lambda path: path.name
)
def test_every_name_is_declared(path: Path) -> None:
    # A dot of a regular expression, escaped once or twice.
    text = path.read_text(encoding="utf-8").replace("\\\\.", ".").replace("\\.", ".")

    named = {name for name in DOTTED.findall(text) if not name.endswith((".yaml", ".md"))}

    assert named <= DECLARED | METRICS | EVENTS | {"corevital.risk", "corevital.step.token"}


def test_the_runbooks_name_what_is_declared_or_is_to_be_set_up() -> None:
    attributes = set(re.findall(r"span\.((?:corevital|gen_ai)[a-z_.]+)", RUNBOOKS))

    assert attributes
    assert attributes <= DECLARED


def prometheus_names() -> set[str]:
    """CoreVital's metrics as Prometheus names them when it takes them over OTLP."""
    suffixes = {"s": "_seconds", "bit": "_bit"}
    names = set()
    for each in semconv.METRICS:
        name = each.name.replace(".", "_") + suffixes.get(each.unit, "")
        histogram = each.instrument == "histogram"
        ends = ("_bucket", "_count", "_sum") if histogram else ("_total",)
        names |= {name + end for end in ends}
    return names | {"gen_ai_server_request_duration_seconds_count"}


def alert_metrics() -> set[str]:
    """The metrics that the Collector makes, as Prometheus names them."""
    connectors = yaml.safe_load((FOLDER / "alerts.yaml").read_text())["connectors"]
    counts = connectors["count/alerts"]["spans"]
    return {f"{name.replace('.', '_')}_total" for name in counts}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_asks_for_metrics_and_labels_that_exist(alert: dict[str, Any]) -> None:
    expression = alert["expr"]
    labels = {name.replace(".", "_") for name in DECLARED}

    named = set(re.findall(r"\b(?:corevital|gen_ai|generation_alert)_\w+", expression))

    assert named <= prometheus_names() | alert_metrics() | labels


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_an_alert_says_all_that_somebody_needs(alert: dict[str, Any]) -> None:
    name, annotations = alert["alert"], alert["annotations"]

    assert alert["labels"]["severity"] in ("critical", "warning", "info")
    assert annotations.keys() == {"summary", "description", "runbook_url"}
    assert annotations["runbook_url"].endswith(f"docs/runbooks.md{{{{ end }}}}#{name.lower()}")
    if name != "CoreVitalCollectorDown":
        assert "/d/corevital-explorer?var-service={{ $labels.job }}" in annotations["description"]


def test_every_alert_has_a_runbook_and_every_runbook_an_alert() -> None:
    titles = re.findall(r"^## (.*)$", RUNBOOKS, re.M)

    assert titles == [alert["alert"] for alert in ALERTS]


@pytest.mark.parametrize("title", [alert["alert"] for alert in ALERTS])
def test_a_runbook_is_whole(title: str) -> None:
    (text,) = re.findall(rf"^## {title}\n(.*?)(?=^## |\Z)", RUNBOOKS, re.DOTALL | re.M)

    for part in ("**Meaning.**", "**Look.**", "**Likely causes.**", "**Do.**", "**False alarm"):
        assert part in text
    assert "```promql" in text or "```traceql" in text


def test_links_of_the_runbooks_lead_somewhere() -> None:
    titles = {title.lower() for title in re.findall(r"^## (.*)$", RUNBOOKS, re.M)}
    links = re.findall(r"\]\(([^)]+)\)", RUNBOOKS)

    for link in links:
        page, _, anchor = link.partition("#")
        assert not page or (ROOT / "docs" / page).exists(), link
        assert not anchor or anchor in titles, link


def test_every_alert_is_tested_firing() -> None:
    tested = set()
    for path in FOLDER.glob("*.test.yaml"):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for query in test["promql_expr_test"]:
                for sample in query["exp_samples"]:
                    tested |= set(re.findall(r'alertname="(\w+)"', sample["labels"]))

    assert tested == {alert["alert"] for alert in ALERTS}


def test_every_compound_signal_is_counted() -> None:
    names = set(signals.SEVERITY)

    assert {f"generation_alert_{name}_total" for name in names} <= alert_metrics()


def test_each_file_changes_pipelines_that_no_other_changes() -> None:
    first, instead = "collector.yaml", "backends/instead.yaml"
    changed: dict[str, str] = {}
    for name, path in FILES.items():
        for pipeline in (yaml.safe_load(path.read_text()).get("service") or {"pipelines": {}})[
            "pipelines"
        ]:
            if name not in (first, instead):
                assert pipeline not in changed, f"{pipeline}: {name} and {changed[pipeline]}"
                changed[pipeline] = name

    assert len(changed) > 10


# The fields that the READMEs of these components document, of those that are used.
DOCUMENTED: Final[dict[str, dict[str, set[str]]]] = {
    "datadog": {"api": {"site", "key"}},
    "clickhouse": {
        "endpoint": set(),
        "database": set(),
        "username": set(),
        "password": set(),
        "create_schema": set(),
        "ttl": set(),
        "timeout": set(),
    },
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_an_exporter_that_cannot_run_here_has_only_documented_fields(name: str) -> None:
    file = yaml.safe_load(FILES[f"backends/{name}.yaml"].read_text())
    fields: dict[str, Any] = file["exporters"][name]

    for field, value in fields.items():
        assert field in DOCUMENTED[name]
        if isinstance(value, dict):
            assert value.keys() <= DOCUMENTED[name][field]
    components = {name, "batch", "forward/kept", "forward/tagged", *file.get("connectors", ())}
    for pipeline in file["service"]["pipelines"].values():
        assert {each for part in pipeline.values() for each in part} <= components
