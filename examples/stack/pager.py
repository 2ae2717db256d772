"""Prints the alerts that the Alertmanager sends to its pager: ``docker compose logs -f pager``."""

import json
from http.server import BaseHTTPRequestHandler, HTTPServer


class Pager(BaseHTTPRequestHandler):
    """Takes the JSON of Alertmanager's webhook."""

    def do_POST(self) -> None:
        """Print one line for each alert."""
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        for alert in body["alerts"]:
            told = alert["annotations"]
            print(f"{alert['status']}: {told['summary']}. {told['description']}")
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Print alerts only."""


if __name__ == "__main__":
    HTTPServer(("", 8080), Pager).serve_forever()
