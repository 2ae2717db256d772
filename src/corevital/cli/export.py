"""The run's own OpenTelemetry providers, and whether what they sent has arrived."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc._log_exporter import OTLPLogExporter as GrpcLogExporter
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
    OTLPMetricExporter as GrpcMetricExporter,
)
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter as HttpLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
    OTLPMetricExporter as HttpMetricExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    HistogramDataPoint,
    InMemoryMetricReader,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import (
    SERVICE_NAME,
    SERVICE_VERSION,
    OTELResourceDetector,
    Resource,
)
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from corevital import semconv
from corevital.cli.destination import Destination, Endpoint, Protocol, Signal
from corevital.cli.errors import USAGE, CommandError, first_line
from corevital.cli.otlp_json import OtlpJsonFileExporter
from corevital.version import __version__

# The exporters' own default is ten seconds, retries included: too long to wait for an answer at a
# terminal, where an endpoint that is down is most often a typing error.
_TIMEOUT_S: Final = 5.0
_PROBE_TIMEOUT_S: Final = 1.0

_EXPORTERS: Final[dict[tuple[Signal, Protocol], Callable[..., Any]]] = {
    (Signal.TRACES, Protocol.GRPC): GrpcSpanExporter,
    (Signal.TRACES, Protocol.HTTP): HttpSpanExporter,
    (Signal.METRICS, Protocol.GRPC): GrpcMetricExporter,
    (Signal.METRICS, Protocol.HTTP): HttpMetricExporter,
    (Signal.LOGS, Protocol.GRPC): GrpcLogExporter,
    (Signal.LOGS, Protocol.HTTP): HttpLogExporter,
}


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of the telemetry: ``error`` says why some of it did not arrive."""

    destination: Destination
    error: str | None

    @property
    def arrived(self) -> bool:
        """Whether all of it arrived."""
        return self.error is None


class Telemetry:
    """Providers for one run, which send to ``destination`` and touch nothing global.

    Every span is sampled, whatever the environment says: the run was asked for to be seen.
    """

    def __init__(self, destination: Destination) -> None:
        self._destination = destination
        self._log = _ExporterLog()
        self._own_metrics = InMemoryMetricReader()
        self._file_exporter = OtlpJsonFileExporter(destination.trace_file)
        self._watches = {
            signal: _Watch(_otlp_exporter(signal, endpoint))
            for signal, endpoint in destination.endpoints.items()
        }
        resource = _resource()
        self.tracer_provider = self._make_tracer_provider(resource)
        self.meter_provider = self._make_meter_provider(resource)
        self.logger_provider = self._make_logger_provider(resource)

    def _make_tracer_provider(self, resource: Resource) -> TracerProvider:
        provider = TracerProvider(
            ALWAYS_ON, resource, shutdown_on_exit=False, id_generator=_UnseededIds()
        )
        if (watch := self._watches.get(Signal.TRACES)) is not None:
            provider.add_span_processor(BatchSpanProcessor(watch.exporter))
        else:
            self._watches[Signal.TRACES] = _Watch(self._file_exporter)
            provider.add_span_processor(SimpleSpanProcessor(self._file_exporter))
        return provider

    def _make_meter_provider(self, resource: Resource) -> MeterProvider:
        readers: list[MetricReader] = [self._own_metrics]
        if (watch := self._watches.get(Signal.METRICS)) is not None:
            readers.append(PeriodicExportingMetricReader(watch.exporter))
        return MeterProvider(readers, resource, shutdown_on_exit=False)

    def _make_logger_provider(self, resource: Resource) -> LoggerProvider:
        provider = LoggerProvider(resource, shutdown_on_exit=False)
        if (watch := self._watches.get(Signal.LOGS)) is not None:
            provider.add_log_record_processor(BatchLogRecordProcessor(watch.exporter))
        return provider

    def capture_seconds(self) -> float | None:
        """Time that CoreVital took for itself, by its own metric."""
        data = self._own_metrics.get_metrics_data()
        points = [
            point
            for resource_metrics in (data.resource_metrics if data is not None else ())
            for scope_metrics in resource_metrics.scope_metrics
            for metric in scope_metrics.metrics
            if metric.name == semconv.METRIC_COST
            for point in metric.data.data_points
            if isinstance(point, HistogramDataPoint)
        ]
        return sum(point.sum for point in points) if points else None

    def finish(self) -> Delivery:
        """Send what is left, shut the providers down, and say whether everything arrived."""
        providers = (self.tracer_provider, self.meter_provider, self.logger_provider)
        # Side by side, so that an endpoint that does not answer is waited for only once.
        with self._log.listening(), ThreadPoolExecutor(len(providers)) as pool:
            for stopping in [pool.submit(provider.shutdown) for provider in providers]:
                stopping.result()
        return Delivery(self._destination, self._error())

    def _error(self) -> str | None:
        failed = [signal for signal, watch in self._watches.items() if watch.failed]
        if not failed:
            return None
        if (error := self._file_exporter.error) is not None:
            return f"cannot write {self._destination.trace_file}: {error.strerror}"
        endpoint = self._destination.endpoints[failed[0]]
        return f"{', '.join(failed)} did not arrive at {endpoint.base}: {self._reason(endpoint)}"

    def _reason(self, endpoint: Endpoint) -> str:
        """Why an endpoint got nothing: nobody is there, or else what its exporter said."""
        parts = urlsplit(endpoint.url if "://" in endpoint.url else f"//{endpoint.url}")
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            with socket.create_connection((parts.hostname or "", port), _PROBE_TIMEOUT_S):
                return self._log.newest or "the exporter gave no reason"
        except OSError as error:
            return error.strerror or str(error)


def _resource() -> Resource:
    """The environment's resource, named after CoreVital where the environment does not name it."""
    named = SERVICE_NAME in OTELResourceDetector().detect().attributes
    own = {} if named else {SERVICE_NAME: "corevital", SERVICE_VERSION: __version__}
    return Resource.create(own)


def _otlp_exporter(signal: Signal, endpoint: Endpoint) -> Any:
    arguments: dict[str, Any] = {"endpoint": endpoint.url}
    timeouts = ("OTEL_EXPORTER_OTLP_TIMEOUT", f"OTEL_EXPORTER_OTLP_{signal.upper()}_TIMEOUT")
    if not any(os.environ.get(variable) for variable in timeouts):
        arguments["timeout"] = _TIMEOUT_S
    try:
        return _EXPORTERS[signal, endpoint.protocol](**arguments)
    except Exception as error:
        # Headers, compression, certificates and timeouts are read from the environment there, and
        # each is refused with an exception of its own kind.
        raise CommandError(
            f"the OTLP exporter for {signal} cannot be set up: {first_line(error)}", USAGE
        ) from error


class _UnseededIds(IdGenerator):
    """Identifiers that are new in every run.

    The SDK's own come from Python's random numbers, which ``--seed`` makes repeat themselves.
    """

    def generate_span_id(self) -> int:
        return secrets.randbelow(2**64 - 1) + 1

    def generate_trace_id(self) -> int:
        return secrets.randbelow(2**128 - 1) + 1

    def is_trace_id_random(self) -> bool:
        return True


class _Watch:
    """Whether everything given to an exporter has arrived.

    The SDK's processors and readers drop the result of an export.
    """

    def __init__(self, exporter: Any) -> None:
        self.exporter = exporter
        self._begun = 0
        self._done = 0
        self._export = exporter.export
        exporter.export = self._watched_export

    def _watched_export(self, *args: Any, **kwargs: Any) -> Any:
        self._begun += 1
        result = self._export(*args, **kwargs)
        if result.name == "SUCCESS":
            self._done += 1
        return result

    @property
    def failed(self) -> bool:
        """Whether an export failed or has not ended."""
        return self._done < self._begun


class _ExporterLog(logging.Handler):
    """Keeps what the exporters log, the only place where they say what went wrong."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.newest: str | None = None

    def emit(self, record: logging.LogRecord) -> None:
        self.newest = " ".join(record.getMessage().split())

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Listen to the SDK and its exporters inside the block."""
        loggers = [logging.getLogger(f"opentelemetry.{part}") for part in ("exporter", "sdk")]
        for logger in loggers:
            logger.addHandler(self)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(self)
