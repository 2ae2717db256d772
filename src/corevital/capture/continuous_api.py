"""Where continuous batching can be observed, in the releases of ``transformers`` that are known.

Two interfaces are known: that of 4.57, and that of the 5.x releases with a ``ModelRunner``. In any
other release continuous batching runs unobserved.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn

from corevital.capture.continuous_batch import Schedule, ScheduledRow, active_batches
from corevital.capture.continuous_request import CANCELLED, ERROR
from corevital.capture.unobservable import Unobservable

_PACKAGE: Final = "transformers.generation.continuous_batching"
Function = Callable[..., Any]
Patch = tuple[Any, str, Callable[[Function], Function]]
"""An owner, the name of one of its attributes, and what makes a replacement of the original."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """Blocks of a key-value cache."""

    used: int
    free: int


class BatchingApi(Protocol):
    """What CoreVital needs of one release."""

    @property
    def manager(self) -> type:
        """The class of the managers."""
        ...

    @property
    def state(self) -> type:
        """The class of a manager's accounts of its requests."""
        ...

    def patches(self) -> list[Patch]:
        """What is to be replaced to see every batch and every end of a request."""
        ...

    def prompt_ids(self, state: Any) -> Any:
        """The prompt of a request."""
        ...

    def generated(self, state: Any) -> list[int]:
        """The tokens of a request so far."""
        ...

    def blocks(self, cache: Any) -> Blocks:
        """How full a key-value cache is."""
        ...


def find_batching_api() -> BatchingApi | None:
    """The interface of the installed release, ``None`` where it is none of those known."""
    try:
        api = importlib.import_module(f"{_PACKAGE}.continuous_api")
        requests = importlib.import_module(f"{_PACKAGE}.requests")
        scheduler = importlib.import_module(f"{_PACKAGE}.scheduler").Scheduler
        manager, processor = api.ContinuousBatchingManager, api.ContinuousBatchProcessor
        if hasattr(api, "ModelRunner"):
            known: BatchingApi = _Runner(
                manager, requests.RequestState, scheduler, processor,
                api.ModelRunner, api.OutputRouter, api.stream_context,
            )  # fmt: skip
        else:
            known = _Early(manager, requests.RequestState, scheduler, processor)
        known_attributes = all(hasattr(owner, name) for owner, name, _ in known.patches())
    except (ImportError, AttributeError):
        return None
    return known if known_attributes else None


@dataclass(frozen=True, slots=True)
class _Runner:
    """From 5.x releases that compute batches in a ``ModelRunner``."""

    manager: type
    state: type
    scheduler: type
    processor: type
    runner: type
    router: type
    stream_context: Callable[[Any], Any]

    def patches(self) -> list[Patch]:
        return [
            (self.runner, "compute_batch", self._compute_batch),
            (self.processor, "update_batch", _update_batch),
            (self.router, "fail_and_deliver", functools.partial(_failing, state_at=1)),
            (self.scheduler, "clear_cancelled_requests", _clear_cancelled),
        ]

    def prompt_ids(self, state: Any) -> Any:
        return state.initial_tokens

    def generated(self, state: Any) -> list[int]:
        tokens: list[int] = state.generated_tokens
        return tokens

    def blocks(self, cache: Any) -> Blocks:
        free = min(max(float(cache.compute_free_capacity()), 0.0), 1.0) * cache.num_blocks
        return Blocks(cache.num_blocks - round(free), round(free))

    def _compute_batch(self, compute: Function) -> Function:
        @functools.wraps(compute)
        def compute_batch(runner: Any, model: nn.Module, batch_data: Any) -> Any:
            observer = active_batches.get()
            if observer is None:
                return compute(runner, model, batch_data)
            step = observer.batch_begins(lambda: _schedule_of(runner))
            if step is None:
                return compute(runner, model, batch_data)
            if runner.pad_inputs:
                # Nothing of Python runs there that could see the logits.
                step.reason = "forward passes are compiled or replayed from CUDA graphs"
                return compute(runner, model, batch_data)
            seen = _SeenLogits()
            processes = runner.logit_processor.do_processing
            result = compute(runner, _SeenModel(model, seen, processes=processes), batch_data)
            with self.stream_context(runner.inputs_and_outputs.compute_stream):
                observer.batch_computed(step, lambda: _rows_of_runner(runner, seen))
            return result

        return compute_batch


def _schedule_of(runner: Any) -> Schedule:
    tables = runner.inputs_and_outputs
    if hasattr(tables, "io_pairs"):
        tables = tables.io_pairs[tables.current_pair].host_io
    states = [future.state for future in tables.requests_in_batch if future.has_new_token]
    rows = [ScheduledRow(row, state.request_id, state) for row, state in enumerate(states)]
    return Schedule(rows, tables.total_seqlen_q)


def _rows_of_runner(runner: Any, seen: _SeenLogits) -> tuple[Tensor, Tensor]:
    logits = seen.rows()
    *_, output_ids = runner.inputs_and_outputs.get_cb_kwargs()
    return logits, output_ids[0, : len(logits)]


class _SeenLogits:
    """The logits of one forward pass, a row for each token that it predicts.

    They are copied where a logits processor may change them later.
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None
        self._error: Exception | None = None

    def keep(self, logits: Any, indices: Tensor | None, *, may_change: bool) -> None:
        """Keep ``logits`` ``[1, n, V]``, or their rows at ``indices``; never fails."""
        try:
            if indices is not None:
                self._rows = logits[0][indices.long()]
            else:
                # Of another type than float32, the processors get a copy.
                copies = may_change and logits.dtype == torch.float32
                self._rows = logits[0].clone() if copies else logits[0]
        except Exception as error:
            self._error = error

    def rows(self) -> Tensor:
        """``[n, V]``.

        Raises:
            Unobservable: no forward pass was seen.
            Exception: what struck when they were to be kept.
        """
        if self._error is not None:
            raise self._error
        if self._rows is None:
            raise Unobservable("no forward pass was seen")
        return self._rows


class _SeenModel:
    """Stands for a model in one batch, and keeps its logits."""

    def __init__(self, model: nn.Module, seen: _SeenLogits, *, processes: bool) -> None:
        self._model = model
        self._seen = seen
        self._processes = processes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, **arguments: Any) -> Any:
        output = self._model(**arguments)
        selects = "logits_to_keep" in arguments
        indices = None if selects else arguments.get("logits_indices")
        self._seen.keep(getattr(output, "logits", None), indices, may_change=self._processes)
        return output


@dataclass(frozen=True, slots=True)
class _Early:
    """4.57, whose manager computes the batches itself."""

    manager: type
    state: type
    scheduler: type
    processor: type

    def patches(self) -> list[Patch]:
        return [
            (self.manager, "_generation_step", self._generation_step),
            (self.manager, "_model_forward", _model_forward),
            (self.processor, "update_batch", _update_batch),
            (self.processor, "_handle_request_error", functools.partial(_failing, state_at=2)),
            (self.scheduler, "clear_cancelled_requests", _clear_cancelled),
        ]

    def prompt_ids(self, state: Any) -> Any:
        return state.full_prompt_ids

    def generated(self, state: Any) -> list[int]:
        tokens: list[int] = state.static_outputs
        return tokens

    def blocks(self, cache: Any) -> Blocks:
        free = cache.get_num_free_blocks()
        return Blocks(cache.num_blocks - free, free)

    def _generation_step(self, compute: Function) -> Function:
        @functools.wraps(compute)
        def generation_step(manager: Any, processor: Any) -> Any:
            observer = active_batches.get()
            if observer is None:
                return compute(manager, processor)
            step = observer.batch_begins(lambda: _schedule_of_processor(processor))
            if step is None:
                return compute(manager, processor)
            seen = _SeenLogits()
            token = _forward.set((seen, processor))
            try:
                result = compute(manager, processor)
            finally:
                _forward.reset(token)
            observer.batch_computed(step, lambda: _rows_of_processor(processor, seen))
            return result

        return generation_step


_forward: ContextVar[tuple[_SeenLogits, Any] | None] = ContextVar("corevital_forward", default=None)


def _model_forward(forward: Function) -> Function:
    @functools.wraps(forward)
    def model_forward(manager: Any, batch_data: Any) -> Any:
        logits = forward(manager, batch_data)
        found = _forward.get()
        if found is not None:
            seen, processor = found
            seen.keep(logits, _places(processor), may_change=True)
        return logits

    return model_forward


def _places(processor: Any) -> Tensor:
    """Where the manager takes the token of each request of a batch, ``[n]``."""
    places: Tensor = processor.logits_indices[: len(processor.requests_in_batch)]
    return places


def _schedule_of_processor(processor: Any) -> Schedule:
    rows = [
        ScheduledRow(row, state.request_id, state)
        for row, state in enumerate(processor.requests_in_batch)
        if not state.remaining_prompt_ids
    ]
    return Schedule(rows, processor.total_query_length)


def _rows_of_processor(processor: Any, seen: _SeenLogits) -> tuple[Tensor, Tensor]:
    return seen.rows(), processor.output_ids[0][_places(processor).long()]


def _update_batch(update: Function) -> Function:
    @functools.wraps(update)
    def update_batch(processor: Any) -> Any:
        observer = active_batches.get()
        if observer is None:
            return update(processor)
        return observer.update(lambda: update(processor))

    return update_batch


def _failing(fail: Function, state_at: int) -> Function:
    """``fail``, which takes an owner, a state and an error, the last two in either order."""

    @functools.wraps(fail)
    def fail_request(*args: Any) -> Any:
        result = fail(*args)
        observer = active_batches.get()
        if observer is not None:
            observer.request_ended(args[state_at].request_id, ERROR, args[3 - state_at])
        return result

    return fail_request


def _clear_cancelled(clear: Function) -> Function:
    @functools.wraps(clear)
    def clear_cancelled_requests(scheduler: Any) -> Any:
        observer = active_batches.get()
        if observer is None or not scheduler._requests_to_cancel:
            return clear(scheduler)
        known = [
            request_id
            for request_id in list(scheduler._requests_to_cancel)
            if request_id in scheduler.active_requests or request_id in scheduler.waiting_requests
        ]
        result = clear(scheduler)
        for request_id in known:
            observer.request_ended(request_id, CANCELLED)
        return result

    return clear_cancelled_requests
