"""Keeps one span processor on whichever tracer provider is in use."""

from __future__ import annotations

import threading
import weakref
from weakref import WeakSet

from opentelemetry.trace import TracerProvider, get_tracer_provider

from corevital.telemetry.span_processor import CoreVitalSpanProcessor


class ProcessorInstaller:
    """Adds the span processor once to every provider that takes processors.

    The global provider may be set after instrumenting, so it is looked up at each generation.
    """

    def __init__(
        self, processor: CoreVitalSpanProcessor, provider: TracerProvider | None, *, enabled: bool
    ) -> None:
        self._processor = processor
        self._takes_processors = provider is None or hasattr(provider, "add_span_processor")
        self._provider = (
            weakref.ref(provider) if provider is not None and self._takes_processors else None
        )
        self._enabled = enabled
        self._lock = threading.Lock()
        self._installed: WeakSet[TracerProvider] = WeakSet()

    def ensure_installed(self) -> None:
        """Add the processor to the provider in use, unless it or another of its kind is there."""
        if not self._enabled or not self._takes_processors:
            return
        provider = get_tracer_provider() if self._provider is None else self._provider()
        if provider is None or provider in self._installed:
            return
        add = getattr(provider, "add_span_processor", None)
        if not callable(add):
            return
        with self._lock:
            if provider not in self._installed:
                add(self._processor)
                self._installed.add(provider)

    @property
    def fallback(self) -> CoreVitalSpanProcessor | None:
        """Writes to spans whose start no processor saw: of providers that take none, say."""
        return self._processor if self._enabled else None

    def retire(self) -> None:
        """Take the processor out of use: providers cannot give one back."""
        self._processor.retire()
