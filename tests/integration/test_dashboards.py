"""Every query of every dashboard returns data where models generate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from corevital import semconv
from tests.dashboards.grammar import parse
from tests.dashboards.panels import REPOSITORY, Query, choices, load, queries
from tests.integration import servers
from tests.integration.asking import eventually, logql, promql, traceql
from tests.integration.fleet import SERVICES, fleet
from tests.integration.programs import require
from tests.integration.servers import COLLECTOR_CONFIG, Loki, TraceStore
from tests.otlp_data import ReceivedSpan
from tests.otlp_receiver import grpc_receiver
from tests.smollm2 import LoadedModel

# As Grafana fills them in; the rates look back over both rounds.
GRAFANA = {"__rate_interval": "5m", "__range": "5m", "__interval": "1s", "__auto": "5m"}
EVERYTHING = {"service": ".+", "model": ".*", "prompt": ".*"}
EXPLORER = load(REPOSITORY / "dashboards" / "json" / "generation-explorer.json")


@dataclass(frozen=True, slots=True)
class Seen:
    """The stores, and what went to them."""

    prometheus: str
    loki: str
    spans: list[ReceivedSpan]
    models: tuple[str, str]

    def values(self) -> dict[str, str]:
        """A value for every variable but those that a test chooses."""
        model_a, model_b = self.models
        two = {"model_a": model_a, "model_b": model_b}
        return GRAFANA | EVERYTHING | two


@pytest.fixture(scope="module")
def seen(
    loki: Loki, smollm2: LoadedModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Seen]:
    require("otelcol")
    folder = tmp_path_factory.mktemp("dashboards")
    with servers.prometheus(folder) as prometheus, grpc_receiver() as traces:
        environment = {
            "TEMPO_ENDPOINT": traces.endpoint.removeprefix("http://"),
            "PROMETHEUS_OTLP_ENDPOINT": prometheus.otlp,
            "LOKI_OTLP_ENDPOINT": loki.otlp,
        }
        configuration = [COLLECTOR_CONFIG / "collector.yaml"]
        with servers.collector(configuration, folder, environment=environment) as collector:
            with fleet(collector.grpc, smollm2) as sending:
                # A rate needs two points, and what is counted between them.
                sending.round()
                arrived = f"count({semconv.METRIC_STEPS.replace('.', '_')}_total)"
                assert eventually(lambda: promql(prometheus.url, arrived))
                sending.round()
                risen = f"sum(increase({semconv.METRIC_STEPS.replace('.', '_')}_total[5m])) > 0"
                assert eventually(lambda: promql(prometheus.url, risen))
            calls = 2 * 2 * 6
            traces.wait_for(lambda received: len(received.spans()) == calls, timeout=30)
            yield Seen(prometheus.url, loki.url, traces.spans(), sending.models)


@pytest.mark.parametrize("query", queries("prometheus"), ids=str)
def test_promql_returns_data(query: Query, seen: Seen) -> None:
    assert eventually(lambda: promql(seen.prometheus, query.filled(seen.values())), 10)


@pytest.mark.parametrize(
    "query", [each for each in queries("prometheus") if "service" in each.variables()], ids=str
)
def test_promql_returns_data_of_one_service(query: Query, seen: Seen) -> None:
    # Not everything is found in each model.
    filled = [
        query.filled(seen.values() | {"service": SERVICES[1], "model": model})
        for model in seen.models
    ]

    assert eventually(lambda: [*map(partial(promql, seen.prometheus), filled)] != [[], []], 10)


def test_promql_returns_nothing_of_an_unknown_service(seen: Seen) -> None:
    other = seen.values() | {"service": "unknown"}
    # Where nothing was counted, two numbers say 0.
    counted = [query for query in queries("prometheus") if "vector(0)" not in query.text]

    assert [q for q in counted if promql(seen.prometheus, q.filled(other))] == []


@pytest.mark.parametrize(
    "variable",
    [each for each in EXPLORER["templating"]["list"] if each["type"] == "query"],
    ids=lambda variable: variable["name"],
)
def test_variables_have_values(variable: dict[str, dict[str, str]], seen: Seen) -> None:
    asked = variable["query"]["query"].removeprefix("label_values(").removesuffix(")")
    series, _, label = asked.rpartition(", ")
    expression = f"count by ({label}) ({series.replace('$service', '.+')})"

    assert len(promql(seen.prometheus, expression)) == 2


@pytest.mark.parametrize("query", queries("loki"), ids=str)
@pytest.mark.parametrize("service", [".+", *SERVICES])
def test_logql_returns_data(service: str, query: Query, seen: Seen) -> None:
    text = query.filled(seen.values() | {"service": service})

    assert eventually(lambda: logql(seen.loki, text))


def filled(values: dict[str, str]) -> list[str]:
    """Every TraceQL query, with the first of the fixed choices."""
    fixed = {name: choices(EXPLORER, name)[0] for name in ("flag", "signal", "warning")}
    return [
        query.filled(values | fixed | {"risk": "0.3", "layer": "1"}) for query in queries("tempo")
    ]


def test_traceql_names_only_what_exported_spans_carry(seen: Seen) -> None:
    carried = {name for span in seen.spans for name in span.attributes}
    named = {name for found in parse(filled(seen.values())) for name in found.attributes}

    assert named - carried == set()


def test_the_fleet_has_what_the_explorer_looks_for(seen: Seen) -> None:
    def of(name: str) -> list[object]:
        return [span.attributes[name] for span in seen.spans if name in span.attributes]

    assert {"chat-service", "batch-service"} == {
        span.resource["service.name"] for span in seen.spans
    }
    assert True in of(semconv.NAN_OR_INF)
    assert True in of(semconv.REPETITION_DETECTED)
    assert any(of(semconv.SIGNAL_NAMES))
    assert any(of(semconv.EARLY_WARNING_SIGNALS))
    assert any(1 in layers for layers in of(semconv.BLAME_LAYERS) if isinstance(layers, list))
    assert any(span.status.description == "lost" for span in seen.spans)


def test_tempo_finds_traces(tempo: TraceStore, smollm2: LoadedModel) -> None:
    with fleet(tempo.grpc, smollm2) as sending:
        sending.round()
    signal, warning = ".*", ".*"
    for query in queries("tempo"):
        text = query.filled(
            EVERYTHING
            | {"flag": semconv.NAN_OR_INF, "risk": "0.3", "layer": "1"}
            | {"signal": signal, "warning": warning}
        )
        assert eventually(partial(traceql, tempo.url, text)), text
