"""An OTLP receiver over HTTP that counts the bytes that arrive and keeps none of them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

TRACES, METRICS, LOGS = "/v1/traces", "/v1/metrics", "/v1/logs"
PROTOBUF: Final = "application/x-protobuf"
_FIELDS: Final[Mapping[str, tuple[Any, str, str, str]]] = {
    TRACES: (ExportTraceServiceRequest, "resource_spans", "scope_spans", "spans"),
    METRICS: (ExportMetricsServiceRequest, "resource_metrics", "scope_metrics", "metrics"),
    LOGS: (ExportLogsServiceRequest, "resource_logs", "scope_logs", "log_records"),
}


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of bodies as they came, and those of the spans, metrics or log records in them.

    The rest is the resource and the scope, which everything that is sent in one request shares.
    """

    body: int = 0
    content: int = 0

    def __add__(self, other: Size) -> Size:
        return Size(self.body + other.body, self.content + other.content)


class Counter:
    """What was received so far, by path; usable from any thread."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._lock = threading.Lock()
        self._sizes: dict[str, Size] = {}

    def add(self, path: str, size: Size) -> None:
        """Count one request."""
        with self._lock:
            self._sizes[path] = self._sizes.get(path, Size()) + size

    def take(self) -> dict[str, Size]:
        """What was counted since the call before, by path (``/v1/traces`` and so on)."""
        with self._lock:
            counted, self._sizes = self._sizes, {}
        return counted


@contextmanager
def counting_receiver() -> Iterator[Counter]:
    """Receive on a free loopback port inside the block."""
    counter = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            plain = gzip.decompress(body) if "Content-Encoding" in self.headers else body
            counter.add(self.path, Size(len(body), _content(self.path, plain)))
            # An empty message is a response without rejected items.
            self.send_response(200)
            self.send_header("Content-Type", PROTOBUF)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    counter.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield counter
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _content(path: str, body: bytes) -> int:
    request, groups, scopes, items = _FIELDS[path]
    return sum(
        item.ByteSize()
        for group in getattr(request.FromString(body), groups)
        for scoped in getattr(group, scopes)
        for item in getattr(scoped, items)
    )
