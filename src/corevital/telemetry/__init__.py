"""Turns records and assessments into OpenTelemetry spans, events and metrics."""
