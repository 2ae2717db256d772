"""The instrumentor: one object to switch CoreVital on and off."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import wrapt
from opentelemetry._logs import LoggerProvider
from opentelemetry.instrumentation.instrumentor import (  # type: ignore[attr-defined]
    BaseInstrumentor,
)
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import TracerProvider, get_tracer
from opentelemetry.util.genai.completion_hook import load_completion_hook
from opentelemetry.util.genai.handler import TelemetryHandler

from corevital.intervention import mark_instrumented
from corevital.settings import Settings, load_settings
from corevital.version import __version__

SUPPORTED: Final = "transformers >= 4.57.1, < 6"
SCOPE: Final = "corevital"


class CoreVitalInstrumentor(BaseInstrumentor):  # type: ignore[misc]
    """Instruments every generation of Hugging Face ``transformers``.

    It is a singleton, and both of its methods may be called at any time and any number of times:
    models that were loaded before are instrumented too, and ``uninstrument`` puts every patched
    attribute back.
    """

    def instrumentation_dependencies(self) -> Collection[str]:
        """The range of ``transformers`` that is tested."""
        return (SUPPORTED,)

    def _instrument(self, **kwargs: Any) -> None:
        """Instrument.

        Keywords: ``tracer_provider``, ``meter_provider``, ``logger_provider`` (by default the
        global ones), ``on_generation`` (a :data:`corevital.Listener`), and every field of
        :class:`corevital.Settings`, which overrides its environment variable.

        Raises:
            SettingsError: a setting is unknown or has a value that is not accepted.
        """
        tracer_provider: TracerProvider | None = kwargs.pop("tracer_provider", None)
        meter_provider: MeterProvider | None = kwargs.pop("meter_provider", None)
        logger_provider: LoggerProvider | None = kwargs.pop("logger_provider", None)
        listener = kwargs.pop("on_generation", None)
        settings = load_settings(**kwargs)
        self._undo: list[Callable[[], None]] = []
        if settings.enabled:
            self._patch(settings, tracer_provider, meter_provider, logger_provider, listener)

    def _patch(
        self,
        settings: Settings,
        tracer_provider: TracerProvider | None,
        meter_provider: MeterProvider | None,
        logger_provider: LoggerProvider | None,
        listener: Any,
    ) -> None:
        # Imported here, because the command line and opentelemetry-instrument load this module
        # before it is known whether torch and transformers are needed.
        from transformers import GenerationMixin, PreTrainedModel, PreTrainedTokenizerBase
        from transformers.modeling_layers import GradientCheckpointingLayer
        from transformers.modeling_utils import AttentionInterface

        from corevital.capture.attention_functions import LOOKUP, observed_lookup
        from corevital.capture.attention_modules import restore_attention_modules
        from corevital.capture.continuous_api import find_batching_api
        from corevital.capture.decoding_loops import LOOPS, observed_loop
        from corevital.capture.eager_functions import restore_eager_functions
        from corevital.capture.module_calls import observed_layer_call, observed_model_call
        from corevital.capture.run_memory import RunMemory
        from corevital.telemetry.content import ChatPrompts, PromptReader
        from corevital.telemetry.continuous import ContinuousBatching
        from corevital.telemetry.generate import InstrumentedGenerate
        from corevital.telemetry.guard import Guard
        from corevital.telemetry.metrics import GenerationMetrics
        from corevital.telemetry.own_generates import OwnGenerates
        from corevital.telemetry.pipeline import Pipeline
        from corevital.telemetry.provider import ProcessorInstaller
        from corevital.telemetry.serving import ServingContext
        from corevital.telemetry.span_processor import CoreVitalSpanProcessor

        handler = TelemetryHandler(
            tracer_provider,
            meter_provider,
            logger_provider,
            load_completion_hook(),
            instrumentation_scope_name=SCOPE,
            instrumentation_scope_version=__version__,
        )
        may_read = handler.should_capture_content()
        chats = ChatPrompts(keep_messages=may_read)
        processors = ProcessorInstaller(
            CoreVitalSpanProcessor(settings, logger_provider),
            tracer_provider,
            enabled=settings.span_processor,
        )
        metrics = GenerationMetrics(meter_provider)
        pipeline = Pipeline(
            settings,
            handler,
            get_tracer(SCOPE, __version__, tracer_provider),
            metrics,
            processors,
            PromptReader(chats, may_read=may_read),
            Guard(metrics),
            listener,
        )
        processors.ensure_installed()
        self._undo += [
            processors.retire,
            restore_eager_functions,
            restore_attention_modules,
            RunMemory.let_go,
        ]
        generate = InstrumentedGenerate(GenerationMixin.generate, pipeline)
        for owner, name, wrapped in (
            (GenerationMixin, "generate", _wrapping(generate)),
            (PreTrainedTokenizerBase, "apply_chat_template", _wrapping(chats.observe_template)),
            # Called for every layer at every step, where wrapt costs more than the observation.
            (AttentionInterface, LOOKUP, observed_lookup),
            (GradientCheckpointingLayer, "__call__", observed_layer_call),
            (PreTrainedModel, "__call__", observed_model_call),
            *((GenerationMixin, loop, observed_loop) for loop in LOOPS),
        ):
            self._replace(owner, name, wrapped)
        OwnGenerates(pipeline, self._replace).instrument()
        batching_api = find_batching_api()
        if batching_api is not None:
            batching = ContinuousBatching(batching_api, pipeline)
            for owner, name, wrapped in batching.patches():
                self._replace(owner, name, wrapped)
            self._undo.append(batching.retire)
        self._undo.append(ServingContext(self._replace).retire)
        mark_instrumented(True)

    def _replace(self, owner: Any, name: str, replace: Callable[[Any], Any]) -> None:
        self._undo.append(_Patch(owner, name, replace).undo)

    def _uninstrument(self, **kwargs: Any) -> None:
        """Put every patched attribute back, take the span processor out of use, let memory go."""
        for undo in self._undo:
            undo()
        self._undo = []
        mark_instrumented(False)


def _wrapping(wrapper: Callable[..., Any]) -> Callable[[Any], Any]:
    """Wraps a function so that it keeps its signature and identity for those who look."""
    return lambda original: wrapt.FunctionWrapper(original, wrapper)


class _Patch:
    """A replaced attribute of a class or module."""

    def __init__(self, owner: Any, name: str, replace: Callable[[Any], Any]) -> None:
        self._owner = owner
        self._name = name
        self._own = vars(owner).get(name)
        setattr(owner, name, replace(getattr(owner, name) if self._own is None else self._own))

    def undo(self) -> None:
        """Restore the original; an attribute that was inherited is inherited again."""
        if self._own is None:
            delattr(self._owner, self._name)
        else:
            setattr(self._owner, self._name, self._own)
