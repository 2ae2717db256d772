"""Configuration files that a test adds to those of ``collector-config``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import yaml

from tests.integration.servers import COLLECTOR_CONFIG

BASE: Final = COLLECTOR_CONFIG / "collector.yaml"
SIGNALS: Final = ("traces", "metrics", "logs")
# A test does not wait for a batch to fill.
_QUICK: Final = {"batch": {"timeout": "50ms"}}


def to_receiver(folder: Path, endpoint: str) -> Path:
    """Send everything that is kept to an OTLP/gRPC receiver, as it is sent to Tempo."""
    base = yaml.safe_load(BASE.read_text())["exporters"]["otlp_grpc/tempo"]
    exporter = base | {"endpoint": endpoint.removeprefix("http://"), "tls": {"insecure": True}}
    exporters = {f"otlp_grpc/{signal}": exporter for signal in SIGNALS}
    return _instead(folder / "to-receiver.json", exporters)


def to_files(folder: Path) -> Path:
    """Append everything that is kept to ``traces.jsonl``, ``metrics.jsonl`` and ``logs.jsonl``.

    Each export is a line of OTLP/JSON; all are there when the Collector has stopped.
    """
    # One for each signal: the Collector closes one for several before the last of them is done.
    exporters = {
        f"file/{signal}": {"path": str(folder / f"{signal}.jsonl"), "flush_interval": "50ms"}
        for signal in SIGNALS
    }
    return _instead(folder / "to-files.json", exporters)


def only(folder: Path, *signals: str) -> Path:
    """Store nothing of the other signals; ``signals`` are among ``SIGNALS``."""
    unwanted = [signal for signal in SIGNALS if signal not in signals]
    pipelines = {f"{signal}/stored": {"exporters": ["nop"]} for signal in unwanted}
    configuration = {
        "processors": _QUICK,
        "exporters": {"nop": None},
        "service": {"pipelines": pipelines},
    }
    return _write(folder / f"only-{'-'.join(signals)}.json", configuration)


def _instead(path: Path, exporters: dict[str, Any]) -> Path:
    pipelines = {
        f"{signal}/stored": {"exporters": [exporter]}
        for signal, exporter in zip(SIGNALS, exporters, strict=True)
    }
    configuration = {
        "processors": _QUICK,
        "exporters": exporters,
        "service": {"pipelines": pipelines},
    }
    return _write(path, configuration)


def _write(path: Path, configuration: dict[str, Any]) -> Path:
    path.write_text(json.dumps(configuration, indent=2))
    return path
