"""The version of the package, read by the build backend and sent with the telemetry."""

__version__ = "0.1.0"
