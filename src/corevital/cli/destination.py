"""Where a run's telemetry goes, from the command line and the standard OTLP variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, urlsplit

from corevital.cli.errors import USAGE, CommandError

_HTTP_PORT: Final = 4318


class Signal(StrEnum):
    """The three kinds of telemetry."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class Protocol(StrEnum):
    """The protocols that the OTLP exporters of the Python SDK speak."""

    GRPC = "grpc"
    HTTP = "http/protobuf"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An OTLP receiver; over HTTP, ``url`` includes the signal's path."""

    url: str
    protocol: Protocol

    @property
    def base(self) -> str:
        """The receiver's address without the path of a signal."""
        return _without_signal_path(self.url)


@dataclass(frozen=True, slots=True)
class Destination:
    """Endpoints by signal; without one for traces, spans go to ``trace_file``."""

    endpoints: Mapping[Signal, Endpoint]
    trace_file: Path

    @property
    def traces(self) -> str:
        """Where the spans go, as the user knows it."""
        endpoint = self.endpoints.get(Signal.TRACES)
        return endpoint.base if endpoint is not None else str(self.trace_file)


def resolve_destination(
    endpoint: str | None, trace_file: str, environ: Mapping[str, str]
) -> Destination:
    """The destination that the ``--otlp-endpoint`` option and ``environ`` ask for.

    Raises:
        CommandError: an address or a protocol is not one.
    """
    endpoints = {
        signal: found
        for signal in Signal
        if (found := _endpoint(signal, endpoint, environ)) is not None
    }
    return Destination(endpoints, Path(trace_file))


def _endpoint(signal: Signal, given: str | None, environ: Mapping[str, str]) -> Endpoint | None:
    """The endpoint of one signal.

    By the specification, the address of a variable for one signal is used as it is, and to that of
    the variable for all of them HTTP adds the signal's path. The option is taken for the latter
    even when it has that path already.
    """
    own_variable = f"OTEL_EXPORTER_OTLP_{signal.upper()}_ENDPOINT"
    if given is not None:
        source, address = "--otlp-endpoint", _with_scheme(given)
    elif environ.get(own_variable):
        source, address = own_variable, environ[own_variable]
    elif environ.get("OTEL_EXPORTER_OTLP_ENDPOINT"):
        source = "OTEL_EXPORTER_OTLP_ENDPOINT"
        address = environ[source]
    else:
        return None
    parts = _parts(source, address)
    protocol = _protocol(signal, environ) or _usual_protocol(parts)
    if protocol is Protocol.HTTP:
        address = _with_scheme(address)
        if source != own_variable:
            base = address.rstrip("/")
            address = (_without_signal_path(base) if given is not None else base) + _path(signal)
    return Endpoint(address, protocol)


def _with_scheme(address: str) -> str:
    return address if "://" in address else f"http://{address}"


def _without_signal_path(address: str) -> str:
    for signal in Signal:
        address = address.removesuffix(_path(signal))
    return address


def _parts(source: str, address: str) -> SplitResult:
    # An address without a scheme, which gRPC takes, would be read as a scheme and a path.
    parts = urlsplit(_with_scheme(address))
    try:
        port_is_one = parts.port is None or parts.port > 0
    except ValueError:
        port_is_one = False
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_one:
        raise CommandError(
            f"{source}={address!r} is not an address such as http://localhost:4317", USAGE
        )
    return parts


def _protocol(signal: Signal, environ: Mapping[str, str]) -> Protocol | None:
    for variable in (
        f"OTEL_EXPORTER_OTLP_{signal.upper()}_PROTOCOL",
        "OTEL_EXPORTER_OTLP_PROTOCOL",
    ):
        if name := environ.get(variable, "").strip():
            try:
                return Protocol(name)
            except ValueError:
                accepted = " and ".join(Protocol)
                raise CommandError(f"{variable}={name!r}: accepted are {accepted}", USAGE) from None
    return None


def _usual_protocol(parts: SplitResult) -> Protocol:
    has_path = parts.path.strip("/") != ""
    return Protocol.HTTP if parts.port == _HTTP_PORT or has_path else Protocol.GRPC


def _path(signal: Signal) -> str:
    return f"/v1/{signal}"
