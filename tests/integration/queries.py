"""Asks the servers what they have."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from typing import Any


def get(url: str, **parameters: str | int) -> Any:
    """Return the JSON answer of a GET request; HTTPError where it is refused."""
    query = f"?{urllib.parse.urlencode(parameters)}" if parameters else ""
    with urllib.request.urlopen(f"{url}{query}", timeout=20) as response:
        return json.loads(response.read())


def get_text(url: str) -> str:
    """Return the answer of a GET request as text."""
    with urllib.request.urlopen(url, timeout=20) as response:
        return str(response.read().decode())


def promql(url: str, query: str) -> list[tuple[dict[str, str], float]]:
    """Return the labels and value of every series of an instant query to Prometheus."""
    answer = get(f"{url}/api/v1/query", query=query)
    return [(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]


def logql(url: str, query: str, start_ns: int, end_ns: int) -> list[dict[str, str]]:
    """Return the labels of every log record that a query to Loki finds, the oldest first."""
    answer = get(
        f"{url}/loki/api/v1/query_range",
        query=query,
        start=start_ns,
        end=end_ns,
        limit=5000,
        direction="forward",
    )
    records = [
        (int(value[0]), stream["stream"])
        for stream in answer["data"]["result"]
        for value in stream["values"]
    ]
    return [labels for _, labels in sorted(records, key=lambda record: record[0])]


def jaeger_traces(url: str, service: str) -> list[dict[str, Any]]:
    """Return every trace of a service, in the form of Jaeger's query API."""
    answer = get(f"{url}/api/traces", service=service, limit=1000, lookback="1h")
    return list(answer["data"])
