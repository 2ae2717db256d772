"""Spans as OTLP/JSON lines: what the specification asks for, and that a collector reads it.

https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding
https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/
"""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Link, SpanKind, Status, StatusCode

from corevital.cli.otlp_json import OtlpJsonFileExporter, otlp_json
from tests.integration import servers
from tests.integration.overlays import BASE, to_files
from tests.integration.waiting import eventually

BEYOND_DOUBLE = 2**53 + 1


@pytest.fixture(scope="module")
def spans() -> list[ReadableSpan]:
    """A child and its parent, with every kind of attribute, an event, a link and a status."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource({"service.name": "test"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("scope", "1.0")
    with tracer.start_as_current_span("parent", kind=SpanKind.CLIENT) as parent:
        child = tracer.start_span("child", links=[Link(parent.get_span_context())])
        child.set_attribute("integer", BEYOND_DOUBLE)
        child.set_attribute("number", 0.5)
        child.set_attribute("text", "zwölf\n")
        child.set_attribute("list", [1, 2])
        child.set_attribute("traceId", "no identifier")
        child.add_event("happened", {"step": 1}, timestamp=5)
        child.set_status(Status(StatusCode.ERROR, "broken"))
        child.end()
    provider.shutdown()
    return list(exporter.get_finished_spans())


@pytest.fixture(scope="module")
def written(spans: list[ReadableSpan]) -> list[dict[str, Any]]:
    """The spans as they are written."""
    (resource_spans,) = json.loads(otlp_json(spans))["resourceSpans"]
    (scope_spans,) = resource_spans["scopeSpans"]
    return list(scope_spans["spans"])


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] for pair in span["attributes"]}


def test_identifiers_are_hexadecimal(
    spans: list[ReadableSpan], written: list[dict[str, Any]]
) -> None:
    child, parent = written
    context = spans[0].get_span_context()
    assert context is not None

    assert child["traceId"] == f"{context.trace_id:032x}"
    assert child["spanId"] == f"{context.span_id:016x}"
    assert child["parentSpanId"] == parent["spanId"]
    assert "parentSpanId" not in parent
    (link,) = child["links"]
    assert (link["traceId"], link["spanId"]) == (parent["traceId"], parent["spanId"])


def test_enumerations_are_numbers(written: list[dict[str, Any]]) -> None:
    child, parent = written

    assert (child["kind"], parent["kind"]) == (1, 3)
    assert child["status"] == {"code": 2, "message": "broken"}


def test_integers_of_64_bits_are_strings_and_times_too(
    spans: list[ReadableSpan], written: list[dict[str, Any]]
) -> None:
    assert attributes(written[0])["integer"] == {"intValue": str(BEYOND_DOUBLE)}
    assert written[0]["startTimeUnixNano"] == str(spans[0].start_time)
    assert written[0]["events"][0]["timeUnixNano"] == "5"


def test_other_values_keep_their_type(written: list[dict[str, Any]]) -> None:
    values = attributes(written[0])

    assert values["number"] == {"doubleValue": 0.5}
    assert values["text"] == {"stringValue": "zwölf\n"}
    assert values["list"] == {"arrayValue": {"values": [{"intValue": "1"}, {"intValue": "2"}]}}
    assert values["traceId"] == {"stringValue": "no identifier"}


def test_it_says_exactly_what_goes_over_the_wire(spans: list[ReadableSpan]) -> None:
    request = json.loads(otlp_json(spans))
    for span in request["resourceSpans"][0]["scopeSpans"][0]["spans"]:
        for identified in (span, *span.get("links", ())):
            for name in {"traceId", "spanId", "parentSpanId"} & identified.keys():
                as_bytes = bytes.fromhex(identified[name])
                identified[name] = base64.b64encode(as_bytes).decode()

    assert ParseDict(request, ExportTraceServiceRequest()) == encode_spans(spans)


def test_every_export_appends_one_line(spans: list[ReadableSpan], tmp_path: Path) -> None:
    path = tmp_path / "traces.jsonl"

    assert OtlpJsonFileExporter(path).export(spans[:1]) is SpanExportResult.SUCCESS
    assert OtlpJsonFileExporter(path).export(spans[1:]) is SpanExportResult.SUCCESS

    content = path.read_bytes().decode("utf-8")
    assert content.endswith("\n")
    names = [
        json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"]
        for line in content.splitlines()
    ]
    assert names == ["child", "parent"]


def test_a_file_that_cannot_be_written_is_a_failed_export(
    spans: list[ReadableSpan], tmp_path: Path
) -> None:
    exporter = OtlpJsonFileExporter(tmp_path / "no folder" / "traces.jsonl")

    assert exporter.export(spans) is SpanExportResult.FAILURE
    assert isinstance(exporter.error, FileNotFoundError)


@pytest.fixture
def collector(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A collector's address for traces over HTTP, and the file to which it writes them."""
    with servers.collector([BASE, to_files(tmp_path)], tmp_path) as running:
        yield f"{running.http}/v1/traces", tmp_path / "traces.jsonl"


def test_a_collector_reads_a_line_as_what_was_sent(
    spans: list[ReadableSpan], collector: tuple[str, Path]
) -> None:
    address, received = collector
    line = otlp_json(spans)

    post(address, line)

    eventually(lambda: received.exists() and received.read_text())
    assert by_name(json.loads(received.read_text())) == by_name(json.loads(line))


def post(address: str, line: str) -> None:
    request = urllib.request.Request(
        address, line.encode("utf-8"), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=5) as response:
        assert response.status == 200


def by_name(request: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The spans, without the empty fields that only one of two writers writes."""
    (resource_spans,) = request["resourceSpans"]
    return {
        span["name"]: {key: value for key, value in span.items() if value not in ("", {}, [])}
        for span in resource_spans["scopeSpans"][0]["spans"]
    }
