"""Finds the models that have a ``generate`` of their own, and tells what it leaves to others."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, Final

from transformers import GenerationMixin, PreTrainedModel

_LIBRARY: Final = frozenset({*GenerationMixin.__mro__, *PreTrainedModel.__mro__})
_GENERATE: Final = "generate"
_LOOP: Final = "_sample"


def own_generate(model_class: type) -> type | None:
    """The base whose own ``generate`` a class of models decodes with.

    ``None`` where that is the one of ``GenerationMixin``, or may call this or that of a part of the
    model, which are observed already. Like ``transformers``, this knows a class that generates by a
    base whose name ends in ``GenerationMixin``: models that forecast time series have a
    ``generate`` too.
    """
    bases = model_class.__mro__
    if not any(base.__name__.endswith("GenerationMixin") for base in bases):
        return None
    owner = next((base for base in bases if _GENERATE in vars(base)), None)
    if owner is None or owner in _LIBRARY:
        return None
    function = inspect.unwrap(vars(owner)[_GENERATE])
    hands_over = _GENERATE in _names_used(owner, model_class)
    return owner if isinstance(function, FunctionType) and not hands_over else None


def decodes_with_library_loop(model_class: type) -> bool:
    """Whether an own ``generate`` leaves the loop over tokens to ``GenerationMixin``.

    Its stopping criteria see every token then.
    """
    owner = next(base for base in model_class.__mro__ if _GENERATE in vars(base))
    return (
        "stopping_criteria" in inspect.signature(vars(owner)[_GENERATE]).parameters
        and _LOOP in _names_used(owner, model_class)
        and next(_definitions(model_class, _LOOP), None) is None
    )


def _names_used(owner: type, model_class: type) -> set[str]:
    """What ``generate`` of ``owner`` refers to, and the model's own methods that it calls."""
    names: set[str] = set()
    pending: list[Any] = [vars(owner)[_GENERATE]]
    while pending:
        function = inspect.unwrap(pending.pop())
        if isinstance(function, FunctionType):
            new = set(_names(function.__code__)) - names
            names |= new
            pending += [method for name in new for method in _definitions(model_class, name)]
    return names


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _definitions(model_class: type, name: str) -> Iterator[Any]:
    """What the model's own bases, not those of the library, have by this name."""
    for base in model_class.__mro__:
        if base not in _LIBRARY and name in vars(base):
            yield vars(base)[name]
