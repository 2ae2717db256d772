"""Grafana dashboards for CoreVital's telemetry, as Python that writes their JSON."""
