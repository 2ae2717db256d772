"""One observed call of ``generate``: sets the run up, takes it down, and makes its records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from corevital.capture.active import active_run
from corevital.capture.assisted_run import AssistedRun
from corevital.capture.attention_modules import observe_attention_modules
from corevital.capture.beam_columns import collect_beams
from corevital.capture.beam_run import BeamRun
from corevital.capture.columns import RunColumns, collect
from corevital.capture.criterion import with_observer, with_row_observer, with_stopper
from corevital.capture.decoding import (
    Decoding,
    GenerateCall,
    decoding_of,
    is_list,
    unobservable_decoding,
)
from corevital.capture.eager_functions import observe_eager_functions
from corevital.capture.encoder import ATTENTION, HIDDEN, PROMPT
from corevital.capture.hooks import hooked
from corevital.capture.layers import (
    decoder_size,
    find_decoder_layers,
    find_encoder_layers,
    is_encoder_decoder,
    number_of_layers,
)
from corevital.capture.plan import CapturePlan, InterventionPlan
from corevital.capture.prompt_hash import prompt_hash
from corevital.capture.start import start_run
from corevital.capture.watch import InterventionWatch, no_stopping_criteria
from corevital.intervention import Condition, GenerationStopped
from corevital.record import (
    Captured,
    CaptureMode,
    CaptureReport,
    GenerationRecord,
    ModelDescription,
    StoppedEarly,
)

_OFF: Final = "capture is off"
_NO_TOKEN: Final = "no token was generated"
_UNTIED: Final = "the returned sequence is none that the beams went along"
_BEAMS: Final = "the candidates of beam search change places"
_SUMMARY: Final = "not part of this capture mode"


@dataclass(frozen=True, slots=True)
class Interval:
    """When ``generate`` ran: wall-clock nanoseconds and the matching ``perf_counter_ns``."""

    start_time_ns: int
    start_counter_ns: int
    end_counter_ns: int

    @property
    def end_time_ns(self) -> int:
        """Wall-clock nanoseconds of the end, on the clock of the start."""
        return self.at(self.end_counter_ns)

    def at(self, counter_ns: int) -> int:
        """Wall-clock nanoseconds of a ``perf_counter_ns``."""
        return self.start_time_ns + counter_ns - self.start_counter_ns


def describe_model(model: nn.Module) -> ModelDescription:
    """Name, family and size of a model; of a local folder, its last part is the name."""
    config: Any = getattr(model, "config", None)
    architecture = type(model).__name__
    name = getattr(model, "name_or_path", None) or getattr(config, "_name_or_path", None)
    family = getattr(config, "model_type", None) or "unknown"
    if name and os.path.isdir(name):
        name = os.path.basename(os.path.normpath(name))
    return ModelDescription(
        name or architecture,
        family,
        architecture,
        number_of_layers(model),
        decoder_size(model, "hidden_size"),
        decoder_size(model, "vocab_size"),
    )


class Observation:
    """Observes one call of ``generate`` as far as its decoding and the plan allow."""

    def __init__(self, call: GenerateCall, plan: CapturePlan) -> None:
        self._call = call
        self._plan = plan
        self._reason = _OFF if plan.mode is CaptureMode.OFF else None
        self._obstacle = unobservable_decoding(call)
        self._unwatched = None if plan.intervention is None else no_stopping_criteria(call)
        watched = plan.intervention is not None and self._unwatched is None
        self._observes = self._obstacle is None and (self._reason is None or watched)
        if self._reason is not None and watched:
            # Without capture, an intervention sees part of a summary, and nothing of it is kept.
            plan = replace(plan, mode=CaptureMode.SUMMARY)
        self._encoder_layers = find_encoder_layers(call.model) if self._observes else None
        self.run = start_run(
            call,
            find_decoder_layers(call.model) if self._observes else None,
            plan,
            self._encoder_layers,
        )
        if plan.intervention is not None and watched:
            self.run.watch = self._watch(plan.intervention)
            if self._reason is not None:
                self._observe_only_for(plan.intervention)
        for part in (self.run.layers, self._encoder_layers):
            if part is not None:
                observe_eager_functions(part.layers)
                observe_attention_modules(part.layers)
        self._columns: RunColumns | None = None
        self._collected = False

    @property
    def sees_tokens(self) -> bool:
        """Whether the call's tokens can be followed, for timing at least."""
        # Code of a repository gets the arguments of the call as they are, and may look at them.
        custom = isinstance(self._call.arguments.get("custom_generate"), str)
        listed = is_list(self._call.arguments.get("stopping_criteria"))
        return self._obstacle is None and listed and not custom

    def stopping_criteria(self) -> Any:
        """The call's stopping criteria, and the observer behind them; ``None`` to leave them."""
        criteria = self._call.arguments.get("stopping_criteria")
        if not self.sees_tokens and self.run.watch is None:
            return None
        if self.sees_tokens:
            criteria = with_observer(criteria, self.run)
        return criteria if self.run.watch is None else with_stopper(criteria, self.run)

    def _observe_only_for(self, plan: InterventionPlan) -> None:
        """Leave out what the intervention does not need."""
        by_risk = Condition.RISK in plan.intervention.on
        needed = {
            "logits": by_risk,
            "hidden": by_risk or Condition.REPETITION in plan.intervention.on,
            "attention": by_risk and plan.needs_layers,
        }
        self.run.signals.end(_OFF, *(signal for signal in needed if not needed[signal]))

    def _watch(self, plan: InterventionPlan) -> InterventionWatch:
        decoding = decoding_of(self._call)
        separate = decoding is not Decoding.BEAMS
        unwatched: dict[Condition, str] = {}
        if self._obstacle is not None:
            unwatched = dict.fromkeys((Condition.NON_FINITE, Condition.RISK), self._obstacle)
        if not separate:
            unwatched |= dict.fromkeys((Condition.REPETITION, Condition.RISK), _BEAMS)
        ends = self._call.end_tokens
        padding = self._call.setting("pad_token_id")
        return InterventionWatch(
            plan,
            describe_model(self._call.model),
            # A sequence that ended is padded until the others end too.
            end_tokens=ends | {padding} if ends and isinstance(padding, int) else ends,
            unwatched=unwatched,
            rows_are_sequences=separate,
            drafts_tokens=decoding is Decoding.ASSISTED,
            prompt_length=None if _has_encoder(self._call) else self._call.prompt_length,
        )

    def stopped_early(self) -> list[StoppedEarly]:
        """What stopped sequences of this call, once it is over."""
        if self.run.watch is None:
            return []
        self.run.finish_watch()
        return list(self.run.watch.stopped.values())

    def exception(self, result: Any) -> GenerationStopped | None:
        """What the caller asked to get in place of ``result``, if the generation was stopped."""
        plan = self._plan.intervention
        if plan is None or not plan.intervention.raises or not (stopped := self.stopped_early()):
            return None
        first = min(stopped, key=lambda each: each.step)
        return GenerationStopped(first.reason, first.step, getattr(result, "sequences", result))

    def logits_processors(self) -> Any:
        """The call's logits processors and an observer behind them; ``None`` if none is needed."""
        if not self.sees_tokens or not isinstance(self.run, BeamRun):
            return None
        return with_row_observer(self._call.arguments.get("logits_processor"), self.run)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Observe what the current thread generates inside the block."""
        # A call that is not observed must not be taken for part of one around it.
        follows = self._observes or (
            # Its forward passes tell accepted tokens from candidates.
            self._obstacle is None and isinstance(self.run, AssistedRun)
        )
        token = active_run.set(self.run if follows else None)
        try:
            with hooked(self.run.layers, self._encoder_layers):
                yield
        finally:
            active_run.reset(token)

    @property
    def seconds(self) -> float:
        """Time spent observing."""
        return self.run.signals.seconds

    @property
    def failed_signals(self) -> list[str]:
        """The signals whose observation failed."""
        return self.run.signals.failed

    def token_seconds(self, interval: Interval) -> NDArray[np.float64]:
        """Seconds from the call to each token, ``[S]``."""
        times = np.asarray(self.run.token_times_ns, dtype=np.float64)
        return (times - interval.start_counter_ns) / 1e9

    def records(
        self, model: ModelDescription, interval: Interval, result: Any
    ) -> list[GenerationRecord]:
        """One record for each sequence; ``result`` is what ``generate`` returned."""
        # What a model's own generate returns are no tokens of its loop.
        returned = None if self._call.own else _sequences(result)
        columns = self._collect(interval, returned)
        report = self._report(columns)
        if columns is None:
            return [self._empty(model, report, interval)]
        steps = columns.token_ids.shape[1]
        if returned is not None:
            steps = min(steps, max(returned.shape[1] - self.run.prompt_length, 0))
        return [
            self._record(model, report, interval, columns, row, steps)
            for row in range(columns.token_ids.shape[0])
        ]

    def _collect(self, interval: Interval, returned: Tensor | None) -> RunColumns | None:
        if not self._collected:
            self._collected = True
            run = self.run
            with run.signals.timed():
                run.settle(returned, interval.end_counter_ns)
                run.finish()
                self._columns = collect_beams(run) if isinstance(run, BeamRun) else collect(run)
        return self._columns

    def _record(
        self,
        model: ModelDescription,
        report: CaptureReport,
        interval: Interval,
        columns: RunColumns,
        row: int,
        steps: int,
    ) -> GenerationRecord:
        if columns.lengths is not None and (columns.tied is None or columns.tied[row]):
            steps = min(steps, int(columns.lengths[row]))
        token_ids = columns.token_ids[row, :steps]
        ends = np.isin(token_ids, list(self._call.end_tokens))
        stopped = bool(ends.any())
        if stopped:
            steps = int(ends.argmax()) + 1
        stopped_early = self._stopped_early(row, steps, ended=stopped)
        if stopped_early is not None:
            # Without an end token to pad with, the row went on beside the others.
            steps = stopped_early.step + 1
        times = [interval.at(counter) for counter in self.run.token_times_ns[:steps]]
        tied = columns.tied is None or bool(columns.tied[row])
        observed = tied and self._reason is None
        if not tied:
            missing = Captured(False, _UNTIED)
            report = replace(report, logits=missing, hidden=missing, attention=missing)
            if report.cross_attention is not None:
                report = replace(report, cross_attention=missing)
        return GenerationRecord(
            model=model,
            capture=report,
            prompt_tokens=int(columns.prompt_tokens[row]),
            token_ids=token_ids[:steps].astype(np.int64),
            step_time_ns=np.asarray(times, dtype=np.int64),
            start_time_ns=interval.start_time_ns,
            end_time_ns=interval.end_time_ns,
            logits=columns.logit_columns(row, steps) if observed else None,
            hidden=columns.hidden_columns(row, steps) if observed else None,
            attention=columns.attention_columns(row, steps) if observed else None,
            prompt=columns.prompt[row],
            finish_reason="stop" if stopped else self._length_reason(steps),
            prompt_hash=prompt_hash(model.name, columns.prompt_ids[row]),
            cross_attention=columns.cross_attention_columns(row, steps) if observed else None,
            encoder=columns.encoder[row] if columns.encoder and self._reason is None else None,
            decoder_prompt_tokens=(
                self.run.prompt_length if self.run.encoder is not None else None
            ),
            stopped_early=stopped_early,
        )

    def _stopped_early(self, row: int, steps: int, *, ended: bool) -> StoppedEarly | None:
        """What stopped a sequence of so many steps, unless it had ``ended`` by then."""
        found = None if self.run.watch is None else self.run.watch.of(row)
        if found is None or (ended and found.step >= steps):
            return None
        return replace(found, step=min(found.step, steps - 1))

    def _length_reason(self, steps: int) -> str:
        most_new = self._call.setting("max_new_tokens")
        most = self._call.setting("max_length")
        if isinstance(most_new, int):
            return "length" if steps >= most_new else "stop"
        total = self.run.prompt_length + steps
        return "length" if isinstance(most, int) and total >= most else "stop"

    def _empty(
        self, model: ModelDescription, report: CaptureReport, interval: Interval
    ) -> GenerationRecord:
        nothing = np.empty(0, dtype=np.int64)
        return GenerationRecord(
            model=model,
            capture=report,
            prompt_tokens=0,
            token_ids=nothing,
            step_time_ns=nothing,
            start_time_ns=interval.start_time_ns,
            end_time_ns=interval.end_time_ns,
            stopped_early=next(iter(self.stopped_early()), None),
        )

    def _report(self, columns: RunColumns | None) -> CaptureReport:
        run = self.run
        return CaptureReport(
            mode=self._plan.mode,
            logits=self._captured("logits", columns is not None and columns.logits is not None),
            hidden=self._captured("hidden", columns is not None and columns.hidden is not None),
            attention=self._captured(
                "attention", columns is not None and columns.attention is not None
            ),
            prompt=self._captured("prompt", columns is not None and _has_prompt(columns)),
            failures=len(run.signals.failed),
            full_from_step=run.full_from_step,
            **self._encoder_report(columns),
            stop_conditions=self._stop_conditions,
            stop_unavailable=self._stop_unavailable(),
        )

    @property
    def _stop_conditions(self) -> tuple[str, ...]:
        plan = self._plan.intervention
        return () if plan is None else tuple(each.value for each in plan.intervention.on)

    def _stop_unavailable(self) -> str | None:
        """Which conditions could not be told, and why."""
        plan, watch = self._plan.intervention, self.run.watch
        if plan is None:
            return None
        reason = self._unwatched or self.run.signals.unavailable.get("intervention")
        if reason is not None or watch is None:
            return reason
        told = [each for each in plan.intervention.on if each in watch.unwatched]
        return "; ".join(f"{each}: {watch.unwatched[each]}" for each in told) or None

    def _encoder_report(self, columns: RunColumns | None) -> dict[str, Captured]:
        if not is_encoder_decoder(self._call.model):
            return {}
        # Of all sequences of a call it is the same.
        summary = columns.encoder[0] if columns is not None and columns.encoder else None
        seen = {
            "cross_attention": columns is not None and columns.cross_attention is not None,
            HIDDEN: summary is not None and summary.hidden is not None,
            ATTENTION: summary is not None and summary.attention is not None,
        }
        return {signal: self._captured(signal, available) for signal, available in seen.items()}

    def _captured(self, signal: str, available: bool) -> Captured:
        reason = self._reason or self._obstacle or self.run.signals.unavailable.get(signal)
        if reason is None and available:
            return Captured(True)
        return Captured(False, reason or self._default_reason(signal))

    def _default_reason(self, signal: str) -> str:
        if self.run.steps == 0:
            return _NO_TOKEN
        of_prompt = (PROMPT, HIDDEN, ATTENTION) if self.run.encoder is not None else (PROMPT,)
        if signal in of_prompt and self._plan.mode is not CaptureMode.FULL:
            return _SUMMARY
        if signal == PROMPT and not self._plan.prompt:
            return "switched off"
        if self.run.compiled:
            return "the forward pass is compiled"
        if signal in ("attention", "cross_attention", ATTENTION):
            which = "" if self.run.everything else " of the last layer"
            return f"no attention{which} goes through the attention interface"
        return "nothing was seen in the forward pass"


def _has_encoder(call: GenerateCall) -> bool:
    """Whether what is given to ``generate`` is not the beginning of what it returns."""
    return bool(getattr(getattr(call.model, "config", None), "is_encoder_decoder", False))


def _sequences(result: Any) -> Tensor | None:
    """The token ids ``[B, prompt + S]`` in what ``generate`` returned, ``None`` without any."""
    sequences = getattr(result, "sequences", result)
    return sequences if isinstance(sequences, Tensor) and sequences.dim() == 2 else None


def _has_prompt(columns: RunColumns) -> bool:
    """Whether anything was seen of the prompt; of all sequences of a call it is the same."""
    prompt = columns.prompt[0]
    parts = (prompt.surprisal, prompt.layer_transformation, prompt.basin, prompt.sparse)
    return any(part is not None for part in parts)
