"""Takes the context of a request to the threads in which ``transformers serve`` generates.

A thread begins with an empty context, or keeps that of whoever started it, so that the span of a
generation would begin a trace of its own, or belong to another request.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import wrapt
from opentelemetry.context import Context, attach, detach, get_current

Patch = Callable[[Any, str, Callable[[Any], Any]], None]
"""Replaces an attribute of an owner until CoreVital is switched off."""

_SERVING: Final = "transformers.cli.serving.utils"
_SERVING_4: Final = "transformers.commands.serving"


class ServingContext:
    """Patches the server's modules as soon as they are imported, which only a server does."""

    def __init__(self, patch: Patch) -> None:
        self._patch = patch
        self._retired = False
        for module, handle in ((_SERVING, self._serving), (_SERVING_4, self._serving_4)):
            wrapt.register_post_import_hook(handle, module)

    def retire(self) -> None:
        """Patch nothing that is imported from now on."""
        self._retired = True

    def _serving(self, module: ModuleType) -> None:
        thread = getattr(module, "InferenceThread", None)
        for name in ("submit", "async_submit"):
            if not self._retired and hasattr(thread, name):
                self._patch(thread, name, _submitting_context)

    def _serving_4(self, module: ModuleType) -> None:
        if not self._retired and getattr(module, "Thread", None) is threading.Thread:
            self._patch(module, "Thread", lambda _: _ContextThread)


def _submitting_context(submit: Callable[..., Any]) -> Callable[..., Any]:
    """``submit``, whose function will run in the context of who submits it."""

    @functools.wraps(submit)
    def submit_with_context(
        self: Any, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        return submit(self, functools.partial(_call_in, get_current(), function), *args, **kwargs)

    return submit_with_context


def _call_in(context: Context, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    token = attach(context)
    try:
        return function(*args, **kwargs)
    finally:
        detach(token)


class _ContextThread(threading.Thread):
    """A thread in the context of who makes it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._context = get_current()

    def run(self) -> None:
        _call_in(self._context, super().run)
