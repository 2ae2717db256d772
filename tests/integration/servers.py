"""The real servers of the integration tests, each on free ports of loopback.

Every function is a context manager: the server is ready inside the block and stopped at its end.
``tests/integration/conftest.py`` has fixtures for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.integration.programs import require
from tests.integration.running import (
    LOOPBACK,
    REPOSITORY,
    Server,
    answers,
    free_port,
    listens,
    running,
)

COLLECTOR_CONFIG: Final = REPOSITORY / "collector-config"
# YAML is a superset of JSON, so the configurations of this module are JSON.
_NO_OWN_METRICS: Final = {"service": {"telemetry": {"metrics": {"level": "none"}}}}


@dataclass(frozen=True, slots=True)
class Collector:
    """A Collector; ``grpc`` and ``http`` are base URLs to which OTLP is sent."""

    server: Server
    grpc: str
    http: str


@dataclass(frozen=True, slots=True)
class Prometheus:
    """A Prometheus; OTLP metrics go to ``otlp``, queries to ``url``."""

    server: Server
    url: str
    otlp: str


@dataclass(frozen=True, slots=True)
class Alertmanager:
    """An Alertmanager; ``address`` is what Prometheus takes as a target."""

    server: Server
    url: str
    address: str


@dataclass(frozen=True, slots=True)
class Loki:
    """A Loki; OTLP logs go to ``otlp`` (``/v1/logs`` below it), queries to ``url``."""

    server: Server
    url: str
    otlp: str


@dataclass(frozen=True, slots=True)
class TraceStore:
    """A Jaeger or Tempo; OTLP goes to ``grpc`` and ``http``, queries to ``url``."""

    server: Server
    url: str
    grpc: str
    http: str


@contextmanager
def collector(
    configurations: Sequence[Path],
    folder: Path,
    *,
    environment: Mapping[str, str] | None = None,
    ports: tuple[int, int] | None = None,
) -> Iterator[Collector]:
    """Run a Collector on files that take their OTLP receiver from the environment.

    ``OTLP_GRPC_ENDPOINT`` and ``OTLP_HTTP_ENDPOINT`` are set to the addresses of ``ports``, by
    default free ones, as the files in ``collector-config`` read them. Their own metrics are off.
    """
    program = require("otelcol")
    grpc, http = ports or (free_port(), free_port())
    quiet = _write(folder / "no-own-metrics.json", _NO_OWN_METRICS)
    arguments = [f"--config={path}" for path in (*configurations, quiet)]
    receiver = {
        "OTLP_GRPC_ENDPOINT": f"{LOOPBACK}:{grpc}",
        "OTLP_HTTP_ENDPOINT": f"{LOOPBACK}:{http}",
    }
    with running(
        program,
        arguments,
        folder,
        lambda: listens(grpc) and listens(http),
        environment=receiver | dict(environment or {}),
    ) as server:
        yield Collector(server, f"http://{LOOPBACK}:{grpc}", f"http://{LOOPBACK}:{http}")


@contextmanager
def prometheus(
    folder: Path, configuration: Mapping[str, Any] | None = None, *arguments: str
) -> Iterator[Prometheus]:
    """Run a Prometheus that also takes metrics over OTLP and by remote write.

    ``configuration`` is the whole configuration file; its paths are relative to ``folder``.
    """
    program = require("prometheus")
    port = free_port()
    file = _write(folder / "prometheus.json", configuration or {})
    url = f"http://{LOOPBACK}:{port}"
    with running(
        program,
        [
            f"--config.file={file}",
            f"--storage.tsdb.path={folder / 'prometheus-data'}",
            f"--web.listen-address={LOOPBACK}:{port}",
            "--web.enable-otlp-receiver",
            "--web.enable-remote-write-receiver",
            *arguments,
        ],
        folder,
        lambda: answers(f"{url}/-/ready"),
    ) as server:
        yield Prometheus(server, url, f"{url}/api/v1/otlp")


@contextmanager
def alertmanager(folder: Path, configuration: Path) -> Iterator[Alertmanager]:
    """Run an Alertmanager on one configuration file."""
    program = require("alertmanager")
    address = f"{LOOPBACK}:{free_port()}"
    with running(
        program,
        [
            f"--config.file={configuration}",
            f"--storage.path={folder / 'alertmanager-data'}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ],
        folder,
        lambda: answers(f"http://{address}/-/ready"),
    ) as server:
        yield Alertmanager(server, f"http://{address}", address)


@contextmanager
def loki(folder: Path, limits: Mapping[str, Any] | None = None) -> Iterator[Loki]:
    """Run a Loki that keeps everything in ``folder``; it takes about 20 seconds to start."""
    program = require("loki")
    port, grpc = free_port(), free_port()
    data = folder / "loki-data"
    file = _write(
        folder / "loki.json",
        {
            "auth_enabled": False,
            "server": {
                "http_listen_address": LOOPBACK,
                "http_listen_port": port,
                "grpc_listen_address": LOOPBACK,
                "grpc_listen_port": grpc,
            },
            "common": {
                "instance_addr": LOOPBACK,
                "path_prefix": str(data),
                "replication_factor": 1,
                "ring": {"kvstore": {"store": "inmemory"}, "instance_addr": LOOPBACK},
                "storage": {
                    "filesystem": {
                        "chunks_directory": str(data / "chunks"),
                        "rules_directory": str(data / "rules"),
                    }
                },
            },
            "schema_config": {
                "configs": [
                    {
                        "from": "2024-01-01",
                        "store": "tsdb",
                        "object_store": "filesystem",
                        "schema": "v13",
                        "index": {"prefix": "index_", "period": "24h"},
                    }
                ]
            },
            "limits_config": {"allow_structured_metadata": True} | dict(limits or {}),
            "analytics": {"reporting_enabled": False},
        },
    )
    url = f"http://{LOOPBACK}:{port}"
    with running(
        program,
        [f"-config.file={file}"],
        folder,
        lambda: answers(f"{url}/ready"),
        patience_s=90,
    ) as server:
        yield Loki(server, url, f"{url}/otlp")


@contextmanager
def jaeger(folder: Path) -> Iterator[TraceStore]:
    """Run a Jaeger that keeps its traces in memory; its query API is at ``url``."""
    program = require("jaeger")
    grpc, http, query, query_grpc = (free_port() for _ in range(4))
    file = _write(
        folder / "jaeger.json",
        {
            "service": {
                "extensions": ["jaeger_storage", "jaeger_query"],
                "pipelines": {
                    "traces": {"receivers": ["otlp"], "exporters": ["jaeger_storage_exporter"]}
                },
                "telemetry": {"metrics": {"level": "none"}},
            },
            "extensions": {
                "jaeger_query": {
                    "storage": {"traces": "mem"},
                    "http": {"endpoint": f"{LOOPBACK}:{query}"},
                    "grpc": {"endpoint": f"{LOOPBACK}:{query_grpc}"},
                },
                "jaeger_storage": {"backends": {"mem": {"memory": {"max_traces": 100_000}}}},
            },
            "receivers": {"otlp": _otlp_receiver(grpc, http)},
            "exporters": {"jaeger_storage_exporter": {"trace_storage": "mem"}},
        },
    )
    with running(
        program,
        [f"--config={file}"],
        folder,
        lambda: listens(grpc) and listens(http) and listens(query),
    ) as server:
        try:
            yield _trace_store(server, query, grpc, http)
        finally:
            # It has nothing to save, and would wait ten seconds for idle connections.
            server.kill()


@contextmanager
def tempo(folder: Path) -> Iterator[TraceStore]:
    """Run a Tempo that keeps everything in ``folder``; TraceQL is asked at ``url``/api/search."""
    program = require("tempo")
    grpc, http, query, query_grpc = (free_port() for _ in range(4))
    data = folder / "tempo-data"
    file = _write(
        folder / "tempo.json",
        {
            "server": {
                "http_listen_address": LOOPBACK,
                "http_listen_port": query,
                "grpc_listen_address": LOOPBACK,
                "grpc_listen_port": query_grpc,
            },
            "distributor": {"receivers": {"otlp": _otlp_receiver(grpc, http)}},
            "storage": {
                "trace": {
                    "backend": "local",
                    "local": {"path": str(data / "blocks")},
                    "wal": {"path": str(data / "wal")},
                }
            },
            "usage_report": {"reporting_enabled": False},
        },
    )
    url = f"http://{LOOPBACK}:{query}"
    with running(
        program,
        [f"-config.file={file}"],
        folder,
        lambda: answers(f"{url}/ready"),
        patience_s=90,
    ) as server:
        yield _trace_store(server, query, grpc, http)


def _trace_store(server: Server, query: int, grpc: int, http: int) -> TraceStore:
    query_url, grpc_url, http_url = (f"http://{LOOPBACK}:{port}" for port in (query, grpc, http))
    return TraceStore(server, query_url, grpc_url, http_url)


def _otlp_receiver(grpc: int, http: int) -> dict[str, Any]:
    return {
        "protocols": {
            "grpc": {"endpoint": f"{LOOPBACK}:{grpc}"},
            "http": {"endpoint": f"{LOOPBACK}:{http}"},
        }
    }


def _write(path: Path, configuration: Mapping[str, Any]) -> Path:
    path.write_text(json.dumps(configuration, indent=2))
    return path
