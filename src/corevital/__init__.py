"""OpenTelemetry instrumentation that shows the health of Hugging Face transformers generations."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from corevital.version import __version__

if TYPE_CHECKING:
    from corevital.assess.assessment import Assessment
    from corevital.instrumentor import CoreVitalInstrumentor
    from corevital.intervention import GenerationStopped, intervene
    from corevital.record import GenerationRecord
    from corevital.settings import Settings, SettingsError
    from corevital.telemetry.pipeline import Observed
    from corevital.telemetry.span_processor import CoreVitalSpanProcessor

_HOMES = {
    "Assessment": "corevital.assess.assessment",
    "CoreVitalInstrumentor": "corevital.instrumentor",
    "CoreVitalSpanProcessor": "corevital.telemetry.span_processor",
    "GenerationRecord": "corevital.record",
    "GenerationStopped": "corevital.intervention",
    "Observed": "corevital.telemetry.pipeline",
    "Settings": "corevital.settings",
    "SettingsError": "corevital.settings",
    "intervene": "corevital.intervention",
}

__all__ = [
    "Assessment",
    "CoreVitalInstrumentor",
    "CoreVitalSpanProcessor",
    "GenerationRecord",
    "GenerationStopped",
    "Observed",
    "Settings",
    "SettingsError",
    "__version__",
    "intervene",
]


def __getattr__(name: str) -> Any:
    # Lazily, so that the parts that need neither torch nor OpenTelemetry can be used without them.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
