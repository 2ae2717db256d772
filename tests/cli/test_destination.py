"""Where telemetry goes, by the option and the standard variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from corevital.cli.destination import Destination, Endpoint, Protocol, Signal, resolve_destination
from corevital.cli.errors import CommandError

FILE = "traces.jsonl"


def resolve(endpoint: str | None = None, **environ: str) -> Destination:
    return resolve_destination(endpoint, FILE, environ)


def urls(destination: Destination) -> dict[Signal, str]:
    return {signal: endpoint.url for signal, endpoint in destination.endpoints.items()}


def test_without_an_endpoint_spans_go_to_a_file_and_nothing_else_goes_anywhere() -> None:
    destination = resolve()

    assert destination == Destination({}, Path(FILE))
    assert destination.traces == FILE


def test_the_option_sends_every_signal_over_grpc() -> None:
    destination = resolve("http://collector:4317")

    endpoint = Endpoint("http://collector:4317", Protocol.GRPC)
    assert destination.endpoints == dict.fromkeys(Signal, endpoint)
    assert destination.traces == "http://collector:4317"


@pytest.mark.parametrize(
    "address",
    [
        "http://collector:4318",
        "http://collector:4318/",
        "collector:4318",
        "http://collector:4318/v1/traces",
        "http://collector:4318/v1/traces/",
    ],
)
def test_the_http_port_means_http_with_the_path_of_each_signal(address: str) -> None:
    destination = resolve(address)

    assert urls(destination) == {
        Signal.TRACES: "http://collector:4318/v1/traces",
        Signal.METRICS: "http://collector:4318/v1/metrics",
        Signal.LOGS: "http://collector:4318/v1/logs",
    }
    assert {e.protocol for e in destination.endpoints.values()} == {Protocol.HTTP}
    assert destination.traces == "http://collector:4318"


def test_a_path_means_http_on_any_port() -> None:
    destination = resolve("https://backend.example/otlp")

    assert destination.endpoints[Signal.LOGS] == Endpoint(
        "https://backend.example/otlp/v1/logs", Protocol.HTTP
    )


def test_the_protocol_variable_is_obeyed() -> None:
    over_http = resolve("http://collector:9", OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf")
    over_grpc = resolve("http://collector:4318", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")

    assert over_http.endpoints[Signal.TRACES].url == "http://collector:9/v1/traces"
    assert over_grpc.endpoints[Signal.TRACES].protocol is Protocol.GRPC


def test_a_protocol_may_differ_between_signals() -> None:
    destination = resolve("http://collector:9", OTEL_EXPORTER_OTLP_LOGS_PROTOCOL="http/protobuf")

    assert destination.endpoints[Signal.TRACES].protocol is Protocol.GRPC
    assert destination.endpoints[Signal.LOGS].url == "http://collector:9/v1/logs"


def test_the_variable_is_used_where_the_option_is_not_given() -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317"}

    assert set(resolve(None, **variables).endpoints) == set(Signal)
    assert resolve("http://other:4317", **variables).traces == "http://other:4317"


def test_an_address_for_one_signal_is_used_as_it_is() -> None:
    destination = resolve(
        OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="http://collector:4318/custom",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4318",
    )

    assert urls(destination)[Signal.TRACES] == "http://collector:4318/custom"
    assert urls(destination)[Signal.METRICS] == "http://collector:4318/v1/metrics"


def test_only_the_signals_that_have_an_address_are_sent() -> None:
    destination = resolve(OTEL_EXPORTER_OTLP_METRICS_ENDPOINT="http://prometheus:4317")

    assert set(destination.endpoints) == {Signal.METRICS}
    assert destination.traces == FILE


def test_empty_variables_count_as_unset() -> None:
    assert resolve(OTEL_EXPORTER_OTLP_ENDPOINT="", OTEL_EXPORTER_OTLP_PROTOCOL="").endpoints == {}


@pytest.mark.parametrize(
    "address", ["ftp://collector:4317", "http://", "http://collector:99999", "http://collector:no"]
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(CommandError, match=r"--otlp-endpoint=.* is not an address") as refused:
        resolve(address)

    assert refused.value.status == 2


def test_a_wrong_address_is_refused_whatever_the_protocol() -> None:
    with pytest.raises(CommandError, match="is not an address"):
        resolve("ftp://collector", OTEL_EXPORTER_OTLP_PROTOCOL="grpc")


def test_a_refused_address_is_named_after_its_variable() -> None:
    with pytest.raises(CommandError, match="OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="):
        resolve(OTEL_EXPORTER_OTLP_TRACES_ENDPOINT="ftp://collector")


def test_a_protocol_that_python_does_not_speak_is_refused() -> None:
    with pytest.raises(CommandError, match="'http/json': accepted are grpc and http/protobuf"):
        resolve("http://collector:4318", OTEL_EXPORTER_OTLP_PROTOCOL="http/json")
