"""Instruments the models that have a ``generate`` of their own, loaded or still to be loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import wrapt
from transformers import PreTrainedModel

from corevital.capture.own_generate import own_generate
from corevital.telemetry.generate import InstrumentedGenerate
from corevital.telemetry.pipeline import Pipeline

_NEW_CLASS: Final = "__init_subclass__"

Replace = Callable[[Any, str, Callable[[Any], Any]], None]
"""``replace(owner, name, wrapped)`` puts ``wrapped(original)`` in the place of an attribute."""


class OwnGenerates:
    """Wraps every such ``generate`` once; a class that is new is looked at when it is made."""

    def __init__(self, pipeline: Pipeline, replace: Replace) -> None:
        self._pipeline = pipeline
        self._replace = replace
        self._wrapped: set[type] = set()

    def instrument(self) -> None:
        """Wrap what there is, and from now on what there will be."""
        for model_class in _subclasses(PreTrainedModel):
            self._look_at(model_class)
        self._replace(PreTrainedModel, _NEW_CLASS, self._observed_new_class)

    def _look_at(self, model_class: type) -> None:
        self._pipeline.guard("span", self._wrap, model_class)

    def _wrap(self, model_class: type) -> None:
        owner = own_generate(model_class)
        if owner is not None and owner not in self._wrapped:
            self._wrapped.add(owner)
            self._replace(owner, "generate", self._wrapping)

    def _wrapping(self, original: Callable[..., Any]) -> Any:
        instrumented = InstrumentedGenerate(original, self._pipeline, own=True)
        return wrapt.FunctionWrapper(original, instrumented)

    def _observed_new_class(self, original: Any) -> Any:
        def __init_subclass__(cls: type, /, **kwargs: Any) -> None:
            original.__get__(None, cls)(**kwargs)
            self._look_at(cls)

        return classmethod(__init_subclass__)


def _subclasses(of: type[Any]) -> Iterator[type[Any]]:
    for each in of.__subclasses__():
        yield each
        yield from _subclasses(each)
