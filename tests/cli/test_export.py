"""Telemetry that goes to an OTLP endpoint, or does not arrive there."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from corevital.cli.arguments import DEFAULT_TRACE_FILE
from corevital.version import __version__
from tests.cli.conftest import Command
from tests.otlp_receiver import OtlpReceiver

HTTP = "http/protobuf"


@pytest.fixture
def closed_port() -> int:
    """A port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def assert_complete(receiver: OtlpReceiver) -> None:
    """One span with its metrics and its evaluation, of a service named corevital."""
    (span,) = receiver.spans()
    assert "corevital.risk.score" in span.attributes
    assert span.resource["service.name"] == "corevital"
    assert span.resource["service.version"] == __version__
    assert receiver.metrics()["corevital.risk.score"].points[0].count == 1
    assert [log.event_name for log in receiver.logs()] == ["gen_ai.evaluation.result"]


def test_all_three_signals_arrive_over_grpc(ask: Command, otlp_grpc: OtlpReceiver) -> None:
    status, out, _ = ask("--otlp-endpoint", otlp_grpc.endpoint)

    assert status == 0
    assert_complete(otlp_grpc)
    assert otlp_grpc.spans()[0].trace_id in out
    assert f"sent to {otlp_grpc.endpoint} (traces, metrics, logs)" in out
    assert not Path(DEFAULT_TRACE_FILE).exists()


def test_all_three_signals_arrive_over_http(
    ask: Command, otlp_http: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", HTTP)

    status, out, _ = ask("--otlp-endpoint", otlp_http.endpoint)

    assert status == 0
    assert_complete(otlp_http)
    assert f"sent to {otlp_http.endpoint} (traces, metrics, logs)" in out


def test_an_address_with_a_path_needs_no_word_about_http(
    ask: Command, otlp_http: OtlpReceiver
) -> None:
    assert ask("--otlp-endpoint", f"{otlp_http.endpoint}/v1/traces").status == 0
    assert_complete(otlp_http)


def test_the_standard_variable_is_enough(
    ask: Command, otlp_grpc: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", otlp_grpc.endpoint)

    assert ask().status == 0
    assert_complete(otlp_grpc)


def test_an_endpoint_for_traces_alone_gets_traces_alone(
    ask: Command, otlp_http: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", f"{otlp_http.endpoint}/v1/traces")

    report = json.loads(ask("--json").out)

    assert len(otlp_http.spans()) == 1
    assert otlp_http.metrics() == {}
    assert report["destination"] == {
        "kind": "otlp",
        "traces": otlp_http.endpoint,
        "endpoints": {"traces": {"url": f"{otlp_http.endpoint}/v1/traces", "protocol": HTTP}},
        "arrived": True,
        "error": None,
    }


def test_an_endpoint_for_metrics_alone_leaves_traces_to_the_file(
    ask: Command, otlp_grpc: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", otlp_grpc.endpoint)

    assert ask().status == 0
    assert "corevital.risk.score" in otlp_grpc.metrics()
    assert otlp_grpc.spans() == []
    assert Path(DEFAULT_TRACE_FILE).exists()


def test_the_environment_names_the_service(
    ask: Command, otlp_grpc: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine,team=speech")
    ask("--otlp-endpoint", otlp_grpc.endpoint, "--capture", "off")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "still-mine")
    ask("--otlp-endpoint", otlp_grpc.endpoint, "--capture", "off")

    resources = [span.resource for span in otlp_grpc.spans()]
    assert [resource["service.name"] for resource in resources] == ["mine", "still-mine"]
    assert resources[0]["team"] == "speech"
    assert "service.version" not in resources[0]


@pytest.mark.parametrize("protocol", ["grpc", HTTP])
def test_an_unreachable_endpoint_is_told_after_the_report_and_soon(
    ask: Command, closed_port: int, monkeypatch: pytest.MonkeyPatch, protocol: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    address = f"http://127.0.0.1:{closed_port}"
    reachable = time.monotonic()
    ask()
    started = time.monotonic()

    status, out, err = ask("--otlp-endpoint", address)

    assert status == 1
    assert "Risk" in out
    assert "not all of the telemetry was delivered" in out
    assert err.splitlines()[-1] == (
        "corevital: error: the telemetry is incomplete: traces, metrics, logs did not arrive at "
        f"{address}: Connection refused"
    )
    # Six seconds for the exporters, whose own default is to try for ten, one after another.
    assert time.monotonic() - started < 6 + (started - reachable)


def test_json_says_that_the_telemetry_did_not_arrive(ask: Command, closed_port: int) -> None:
    status, out, _ = ask("--json", "--otlp-endpoint", f"http://127.0.0.1:{closed_port}")
    destination = json.loads(out)["destination"]

    assert status == 1
    assert destination["arrived"] is False
    assert "Connection refused" in destination["error"]


def test_an_endpoint_that_refuses_is_told_with_what_it_said(
    ask: Command, otlp_http: OtlpReceiver
) -> None:
    status, _, err = ask("--otlp-endpoint", f"{otlp_http.endpoint}/no/such/path")

    assert status == 1
    assert f"did not arrive at {otlp_http.endpoint}/no/such/path: " in err
    assert "404" in err


def test_a_wrong_protocol_is_a_failure(ask: Command, otlp_http: OtlpReceiver) -> None:
    status, _, err = ask("--otlp-endpoint", otlp_http.endpoint)

    assert status == 1
    assert f"did not arrive at {otlp_http.endpoint}: " in err


def test_an_address_that_is_none_fails_before_the_model_is_loaded(ask: Command) -> None:
    status, out, err = ask("--otlp-endpoint", "ftp://collector")

    assert (status, out) == (2, "")
    assert err.startswith("corevital: error: --otlp-endpoint='ftp://collector' is not an address")


def test_a_setting_that_the_exporter_refuses_is_wrong_usage(
    ask: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")

    status, out, err = ask("--otlp-endpoint", "http://127.0.0.1:4317")

    assert (status, out) == (2, "")
    assert "the OTLP exporter for traces cannot be set up: " in err


def test_the_failure_of_a_generation_is_still_sent(
    ask: Command, otlp_grpc: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*arguments: object, **keywords: object) -> object:
        raise MemoryError("can't allocate memory")

    monkeypatch.setattr("torch.nn.functional.silu", no_memory)
    monkeypatch.setattr("torch.nn.SiLU.forward", no_memory)
    monkeypatch.setattr("transformers.activations.SiLUActivation.forward", no_memory)

    status, _, err = ask("--otlp-endpoint", otlp_grpc.endpoint)

    assert status == 1
    assert err.splitlines()[-1].startswith("corevital: error: not enough memory (")
    (span,) = otlp_grpc.spans()
    assert span.attributes["error.type"] == "MemoryError"
