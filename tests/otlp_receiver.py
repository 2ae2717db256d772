"""A real OTLP receiver on a free loopback port, over gRPC or HTTP, that keeps what it receives.

A test points an exporter at ``receiver.endpoint`` and reads back ``receiver.spans()``,
``receiver.metrics()`` and ``receiver.logs()``.
"""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2, logs_service_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from tests.otlp_data import (
    Metric,
    ReceivedLog,
    ReceivedSpan,
    decode_logs,
    decode_metrics,
    decode_spans,
)

LOOPBACK = "127.0.0.1"
PROTOBUF = "application/x-protobuf"

TraceRequest = trace_service_pb2.ExportTraceServiceRequest
MetricsRequest = metrics_service_pb2.ExportMetricsServiceRequest
LogsRequest = logs_service_pb2.ExportLogsServiceRequest
TraceResponse = trace_service_pb2.ExportTraceServiceResponse
MetricsResponse = metrics_service_pb2.ExportMetricsServiceResponse
LogsResponse = logs_service_pb2.ExportLogsServiceResponse
AnyRequest = TraceRequest | MetricsRequest | LogsRequest
AnyResponse = TraceResponse | MetricsResponse | LogsResponse
Request = TypeVar("Request", TraceRequest, MetricsRequest, LogsRequest)


class OtlpReceiver:
    """What was received so far; every method may be called from any thread."""

    def __init__(self) -> None:
        self.endpoint = ""
        self._changed = threading.Condition()
        self._requests: list[AnyRequest] = []

    def spans(self) -> list[ReceivedSpan]:
        """Return every span, in the order of arrival."""
        return decode_spans(self.requests(TraceRequest))

    def metrics(self) -> dict[str, Metric]:
        """Return the metrics by name."""
        return decode_metrics(self.requests(MetricsRequest))

    def logs(self) -> list[ReceivedLog]:
        """Return every log record, in the order of arrival."""
        return decode_logs(self.requests(LogsRequest))

    def requests(self, kind: type[Request]) -> list[Request]:
        """Return the protobuf requests of one kind as they came."""
        with self._changed:
            return [request for request in self._requests if isinstance(request, kind)]

    def wait_for(self, predicate: Callable[[OtlpReceiver], object], timeout: float = 10) -> None:
        """Wait until ``predicate(self)`` is true, or raise TimeoutError saying what did arrive."""
        with self._changed:
            if not self._changed.wait_for(lambda: bool(predicate(self)), timeout):
                spans = [span.name for span in self.spans()]
                logs = [log.event_name for log in self.logs()]
                raise TimeoutError(
                    f"not within {timeout} s; received spans {spans}, logs {logs}, "
                    f"metrics {sorted(self.metrics())}"
                )

    def clear(self) -> None:
        """Forget what was received."""
        with self._changed:
            self._requests.clear()

    def accept(self, request: AnyRequest) -> None:
        """Keep one request and wake those who wait for it."""
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()


@contextmanager
def grpc_receiver(port: int = 0) -> Iterator[OtlpReceiver]:
    """Receive OTLP over gRPC; ``port`` 0 is any free one."""
    receiver = OtlpReceiver()
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(_TraceService(receiver), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(_MetricsService(receiver), server)
    logs_service_pb2_grpc.add_LogsServiceServicer_to_server(_LogsService(receiver), server)
    bound = server.add_insecure_port(f"{LOOPBACK}:{port}")
    receiver.endpoint = f"http://{LOOPBACK}:{bound}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(grace=None).wait()


@contextmanager
def http_receiver(port: int = 0) -> Iterator[OtlpReceiver]:
    """Receive OTLP as protobuf over HTTP; ``port`` 0 is any free one.

    The endpoint is the base one, to which an exporter's own ``endpoint`` argument, other than
    ``OTEL_EXPORTER_OTLP_ENDPOINT``, does not add the path: ``f"{receiver.endpoint}/v1/traces"``.
    """
    receiver = OtlpReceiver()

    class Handler(_HttpHandler):
        accept = staticmethod(receiver.accept)

    server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    receiver.endpoint = f"http://{LOOPBACK}:{server.server_port}"
    # How often it looks for the end, in seconds: the default, half a second, is felt in each test.
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _TraceService(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: TraceRequest, context: grpc.ServicerContext) -> TraceResponse:
        self._receiver.accept(request)
        return TraceResponse()


class _MetricsService(metrics_service_pb2_grpc.MetricsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: MetricsRequest, context: grpc.ServicerContext) -> MetricsResponse:
        self._receiver.accept(request)
        return MetricsResponse()


class _LogsService(logs_service_pb2_grpc.LogsServiceServicer):
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def Export(self, request: LogsRequest, context: grpc.ServicerContext) -> LogsResponse:
        self._receiver.accept(request)
        return LogsResponse()


_HTTP_SERVICES: dict[str, tuple[type[AnyRequest], type[AnyResponse]]] = {
    "/v1/traces": (TraceRequest, TraceResponse),
    "/v1/metrics": (MetricsRequest, MetricsResponse),
    "/v1/logs": (LogsRequest, LogsResponse),
}


class _HttpHandler(BaseHTTPRequestHandler):
    """One request per connection, so that none outlives the receiver it was made to."""

    accept: Callable[[AnyRequest], None]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path not in _HTTP_SERVICES:
            self.send_error(404)
            return
        if self.headers.get("Content-Type") != PROTOBUF:
            self.send_error(415)
            return
        request_type, response_type = _HTTP_SERVICES[self.path]
        try:
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            request = request_type.FromString(body)
        except (DecodeError, OSError, EOFError) as error:
            self.send_error(400, str(error))
            return
        self.accept(request)
        response = response_type().SerializeToString()
        self.send_response(200)
        self.send_header("Content-Type", PROTOBUF)
        self.send_header("Content-Length", str(len(response)))
        self.end_headers()
        self.wfile.write(response)

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent: a request is no news in a test."""
