"""Spans in a file of OTLP/JSON lines, as OpenTelemetry's file exporter specification has it.

Each line is one ``ExportTraceServiceRequest``, so a line can also be posted to ``/v1/traces`` of
any OTLP receiver, or the whole file be read by the Collector's OTLP/JSON file receiver.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from google.protobuf.json_format import MessageToDict
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

_IDENTIFIERS: Final = ("traceId", "spanId", "parentSpanId")


def otlp_json(spans: Sequence[ReadableSpan]) -> str:
    """``spans`` as one line of OTLP/JSON.

    It differs from protobuf's own JSON mapping in two ways: trace and span identifiers are
    hexadecimal, and enumerations are numbers.
    """
    request = MessageToDict(encode_spans(spans), use_integers_for_enums=True)
    for resource_spans in request.get("resourceSpans", ()):
        for scope_spans in resource_spans.get("scopeSpans", ()):
            for span in scope_spans.get("spans", ()):
                for identified in (span, *span.get("links", ())):
                    _write_identifiers_in_hex(identified)
    return json.dumps(request, ensure_ascii=False, separators=(",", ":"))


def _write_identifiers_in_hex(identified: dict[str, Any]) -> None:
    for name in _IDENTIFIERS:
        if name in identified:
            identified[name] = base64.b64decode(identified[name]).hex()


class OtlpJsonFileExporter(SpanExporter):
    """Appends every batch of spans to a file as one line.

    ``error`` is what kept the newest batch from being written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.error: OSError | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Append ``spans``, in one write, so that several processes may share the file."""
        try:
            with self._path.open("a", encoding="utf-8", newline="\n") as file:
                file.write(otlp_json(spans) + "\n")
        except OSError as error:
            self.error = error
            return SpanExportResult.FAILURE
        self.error = None
        return SpanExportResult.SUCCESS
