"""Continuous batching: a span for each request, and how busy every manager is."""

from __future__ import annotations

import functools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from opentelemetry.context import attach, get_current
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from corevital.capture.continuous_api import BatchingApi, Function, Patch
from corevital.capture.continuous_batch import BatchObserver, active_batches
from corevital.capture.continuous_request import ERROR, RequestCall, plain_ids
from corevital.capture.observation import describe_model
from corevital.telemetry.background import Background
from corevital.telemetry.continuous_load import Load, observed_loads
from corevital.telemetry.continuous_request import NewRequest, RequestSpan
from corevital.telemetry.pipeline import Pipeline

_LONGEST_WAIT: Final = 30.0
_NO_END: Final = -1


class ContinuousBatching:
    """Sees what managers of continuous batching are given and what they do.

    A request's span begins in the thread that adds the request. The manager's own thread collects
    its tokens; what is to be made of them is made in a thread of CoreVital's, so that no other
    request waits for it.
    """

    def __init__(self, api: BatchingApi, pipeline: Pipeline) -> None:
        self._api = api
        self._pipeline = pipeline
        self._lock = threading.Lock()
        self._managed: weakref.WeakKeyDictionary[Any, _Managed] = weakref.WeakKeyDictionary()
        pipeline.metrics.read_gauges(observed_loads(self._loads))

    def patches(self) -> list[Patch]:
        """What is to be replaced."""
        return [
            (self._api.manager, "add_request", self._add_request),
            (self._api.state, "__init__", self._new_state),
            (self._api.manager, "start", self._start),
            (self._api.manager, "_run_generation_loop", self._run_generation_loop),
            (self._api.manager, "stop", self._stop),
            *self._api.patches(),
        ]

    def retire(self) -> None:
        """End the spans of requests that are under way, with what is known of them."""
        self._pipeline.metrics.read_gauges({})
        for managed in self._all():
            self._pipeline.guard("record", managed.finish)

    def _all(self) -> list[_Managed]:
        with self._lock:
            return list(self._managed.values())

    def _of(self, manager: Any) -> _Managed:
        with self._lock:
            managed = self._managed.get(manager)
            if managed is None:
                managed = self._managed[manager] = _Managed(self._api, self._pipeline, manager)
            return managed

    def _loads(self) -> Iterator[Load]:
        for managed in self._all():
            load = self._pipeline.guard("load", managed.load)
            if load is not None:
                yield load

    def _add_request(self, add: Function) -> Function:
        @functools.wraps(add)
        def add_request(manager: Any, *args: Any, **kwargs: Any) -> Any:
            managed = None
            if is_instrumentation_enabled():
                managed = self._pipeline.guard("span", self._of, manager)
            if managed is None or not managed.sees(manager):
                return add(manager, *args, **kwargs)
            adding = _Adding(managed)
            context = get_current()
            token = _adding.set(adding)
            try:
                return add(manager, *args, **kwargs)
            except BaseException as error:
                # An interruption may strike while a span that begins is the current one.
                attach(context)
                self._pipeline.guard("record", adding.fail, error)
                raise
            finally:
                _adding.reset(token)

        return add_request

    def _new_state(self, init: Function) -> Function:
        """Where a request first has its id, before the manager's thread can see it."""

        @functools.wraps(init)
        def __init__(state: Any, *args: Any, **kwargs: Any) -> None:
            init(state, *args, **kwargs)
            adding = _adding.get()
            if adding is not None:
                self._pipeline.guard("span", adding.begin, state)

        return __init__

    def _start(self, start: Function) -> Function:
        @functools.wraps(start)
        def start_manager(manager: Any) -> Any:
            managed = self._pipeline.guard("span", self._of, manager)
            if managed is not None and not manager.is_running():
                managed.started = True
            return start(manager)

        return start_manager

    def _run_generation_loop(self, run: Function) -> Function:
        @functools.wraps(run)
        def run_generation_loop(manager: Any) -> Any:
            managed = self._pipeline.guard("span", self._of, manager)
            if managed is None:
                return run(manager)
            token = active_batches.set(managed.observer)
            self._pipeline.guard("span", managed.loop_begins)
            try:
                return run(manager)
            finally:
                active_batches.reset(token)
                self._pipeline.guard("record", managed.loop_ends)

        return run_generation_loop

    def _stop(self, stop: Function) -> Function:
        @functools.wraps(stop)
        def stop_manager(manager: Any, *args: Any, **kwargs: Any) -> Any:
            result = stop(manager, *args, **kwargs)
            if not manager.is_running():
                self._pipeline.guard("record", self._stopped, manager)
            return result

        return stop_manager

    def _stopped(self, manager: Any) -> None:
        """Have told of every request when the manager has stopped, also of those never begun."""
        self._of(manager).finish()


class _Adding:
    """The requests that a call of ``add_request`` begins."""

    def __init__(self, managed: _Managed) -> None:
        self._managed = managed
        self._request_ids: tuple[str, ...] = ()

    def begin(self, state: Any) -> None:
        """The manager has made its account of a request."""
        self._request_ids += self._managed.add(state)

    def fail(self, error: BaseException) -> None:
        """The manager did not take the requests."""
        for request_id in self._request_ids:
            self._managed.observer.request_ended(request_id, ERROR, error)


_adding: ContextVar[_Adding | None] = ContextVar("corevital_adding", default=None)
"""Set in the thread or task that adds a request."""


class _Managed:
    """A manager's requests, from the outside.

    Attributes:
        started: whether its thread was started under observation.
    """

    def __init__(self, api: BatchingApi, pipeline: Pipeline, manager: Any) -> None:
        self.observer = BatchObserver(pipeline.settings.top_k, api.generated)
        self.started = False
        self._api = api
        self._pipeline = pipeline
        self._manager = weakref.ref(manager)
        self._model = describe_model(manager.model)
        self._background: Background | None = None
        self._closed: Background | None = None

    def sees(self, manager: Any) -> bool:
        """Whether what becomes of the manager's requests will be seen."""
        return self.started or not manager.is_running()

    def add(self, state: Any) -> tuple[str, ...]:
        """Begin the spans of a request and of those that will be forked off it; their ids."""
        manager = self._manager()
        if manager is None:
            return ()
        family = tuple(f"{state.request_id}__child#{child}" for child in range(_children_of(state)))
        request = self._new_request(manager, state)
        for request_id in (state.request_id, *family):
            span = RequestSpan(self._pipeline, self._model, request, self._later)
            span.run.family = family if request_id == state.request_id else ()
            self.observer.request_added(request_id, span.run)
        return (state.request_id, *family)

    def _new_request(self, manager: Any, state: Any) -> NewRequest:
        end = state.eos_token_id
        arguments = {
            **getattr(state, "logit_processor_kwargs", {}),
            "generation_config": manager.generation_config,
            "max_new_tokens": state.max_new_tokens,
            "eos_token_id": _NO_END if end is None else end,
            "num_return_sequences": 1,
        }
        streams = bool(getattr(state, "streaming", getattr(manager, "streaming", False)))
        prompt = plain_ids(self._api.prompt_ids(state))
        call = RequestCall(manager.model, arguments, prompt)
        return NewRequest(call, state.max_new_tokens, streams)

    def loop_begins(self) -> None:
        """The manager's thread has begun."""
        self.observer.loop_begins()
        self._background = Background()

    def loop_ends(self) -> None:
        """The manager's thread is about to end."""
        self.observer.loop_ends()
        background, self._background = self._background, None
        if background is not None:
            background.close()
        self._closed = background

    def finish(self) -> None:
        """End what is open, and wait until everything has been told."""
        if self._background is None:
            self.observer.loop_ends()
        else:
            self.loop_ends()
        closed, self._closed = self._closed, None
        if closed is not None:
            closed.join(_LONGEST_WAIT)

    def _later(self, work: Callable[[], object]) -> None:
        background = self._background
        if background is None or not background.submit(work):
            work()

    def load(self) -> Load | None:
        """How busy the manager is, ``None`` unless it has a batch processor."""
        manager = self._manager()
        processor = None if manager is None else manager.batch_processor
        if manager is None or processor is None:
            return None
        scheduler = processor.scheduler
        active = len(scheduler.active_requests)
        waiting = len(scheduler.waiting_requests) + manager.input_queue.qsize()
        tokens = self.observer.tokens_in_batch if active else 0
        blocks = self._api.blocks(processor.cache)
        return Load(self._model.name, active, waiting, blocks, tokens, processor.max_batch_tokens)


def _children_of(state: Any) -> int:
    """How many requests are forked off one."""
    return int(getattr(state, "num_children", 0))
