"""Questions to Prometheus, Loki and Tempo over their HTTP APIs."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def get(url: str, **parameters: object) -> dict[str, Any]:
    """The JSON that a URL answers; RuntimeError, with what it said, for an error."""
    query = urllib.parse.urlencode({name: str(value) for name, value in parameters.items()})
    try:
        with _NO_PROXY.open(f"{url}?{query}", timeout=30) as response:
            found: dict[str, Any] = json.load(response)
            return found
    except urllib.error.HTTPError as error:
        raise RuntimeError(f"{parameters}: {error.read().decode(errors='replace')}") from error


def promql(url: str, expression: str) -> list[float]:
    """The values of an instant query now that are numbers."""
    data = get(f"{url}/api/v1/query", query=expression)["data"]
    values = [float(each["value"][1]) for each in data["result"]]
    return [value for value in values if math.isfinite(value)]


def logql(url: str, expression: str) -> list[Any]:
    """What a query finds in the last hour: streams of records, or series."""
    is_metric = expression.startswith(("sum", "count", "topk"))
    if is_metric:
        found = get(f"{url}/loki/api/v1/query", query=expression)
    else:
        start = time.time_ns() - 3600 * 10**9
        found = get(f"{url}/loki/api/v1/query_range", query=expression, start=start)
    return list(found["data"]["result"])


def traceql(url: str, query: str) -> list[Any]:
    """The traces that a Tempo finds in the last hour."""
    now = int(time.time())
    found = get(f"{url}/api/search", q=query, start=now - 3600, end=now + 60, limit=20)
    return list(found.get("traces") or [])


def eventually(look: Callable[[], Any], patience_s: float = 60) -> Any:
    """What ``look`` returns, as soon as it is not empty; at the latest after ``patience_s``."""
    deadline = time.monotonic() + patience_s
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found
