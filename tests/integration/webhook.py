"""A webhook that keeps what an Alertmanager posts to it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from tests.integration.running import LOOPBACK


class Notified(NamedTuple):
    """One alert as it came: at which path of the webhook, and what it says."""

    path: str
    name: str
    labels: dict[str, str]
    annotations: dict[str, str]


class Webhook:
    """What was posted so far."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._posted: list[Notified] = []

    def accept(self, path: str, message: Any) -> None:
        """Keep the alerts of one message that fire."""
        for alert in message["alerts"]:
            if alert["status"] == "firing":
                labels = alert["labels"]
                name = labels["alertname"]
                self._posted.append(Notified(path, name, labels, alert["annotations"]))

    def posted(self) -> list[Notified]:
        """Return every alert, in the order of arrival."""
        return list(self._posted)


@contextmanager
def webhook() -> Iterator[Webhook]:
    """Listen on a free port of loopback."""
    received: Webhook

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.accept(self.path, json.loads(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Stay silent: a request is no news in a test."""

    server = ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    received = Webhook(f"http://{LOOPBACK}:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
