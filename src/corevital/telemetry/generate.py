"""The wrapper of ``generate``: runs it inside a span, whatever else may fail."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from opentelemetry.context import attach, get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from corevital.capture.active import active_run, unobserved
from corevital.capture.decoding import GenerateCall
from corevital.telemetry.generation import Generation
from corevital.telemetry.pipeline import Pipeline

_CRITERIA: Final = "stopping_criteria"
_PROCESSORS: Final = "logits_processor"


class InstrumentedGenerate:
    """A ``wrapt`` wrapper of ``GenerationMixin.generate``, or of a model's ``own``.

    What fails around the generation is logged once and counted; the generation itself runs, returns
    and raises as if it were alone.
    """

    def __init__(
        self, original: Callable[..., Any], pipeline: Pipeline, *, own: bool = False
    ) -> None:
        self._names = list(inspect.signature(original).parameters)[1:]
        self._pipeline = pipeline
        self._own = own

    def __call__(
        self,
        generate: Callable[..., Any],
        model: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Call ``generate`` with the user's arguments, and an observer among its criteria."""
        arguments = dict(zip(self._names, args, strict=False)) | kwargs
        call = GenerateCall(model, arguments, own=self._own)
        if not is_instrumentation_enabled():
            return generate(*args, **kwargs)
        if call.setting("is_assistant"):
            # It drafts for a generation that is under way, perhaps with the same model's layers.
            with unobserved():
                return generate(*args, **kwargs)
        context, run = get_current(), active_run.get()
        try:
            return self._generate(generate, call, args, kwargs)
        except BaseException:
            # An interruption may strike before what was begun could be ended in its order.
            attach(context)
            active_run.set(run)
            raise

    def _generate(
        self,
        generate: Callable[..., Any],
        call: GenerateCall,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        generation = self._pipeline.guard("span", Generation, self._pipeline, call)
        if generation is None:
            return generate(*args, **kwargs)
        observation = generation.observation
        criteria = observation.stopping_criteria()
        if criteria is not None:
            args, kwargs = self._with(_CRITERIA, criteria, args, kwargs)
        processors = observation.logits_processors()
        if processors is not None:
            args, kwargs = self._with(_PROCESSORS, processors, args, kwargs)
        try:
            result = generate(*args, **kwargs)
        except BaseException as error:
            self._pipeline.guard("record", generation.fail, error)
            raise
        stopped = self._pipeline.guard("intervention", generation.observation.exception, result)
        if stopped is not None:
            self._pipeline.guard("record", generation.fail, stopped, result)
            raise stopped
        self._pipeline.guard("record", generation.succeed, result)
        return result

    def _with(
        self, name: str, value: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with another value for one of them."""
        place = self._names.index(name)
        if len(args) > place:
            return (*args[:place], value, *args[place + 1 :]), kwargs
        return args, {**kwargs, name: value}
