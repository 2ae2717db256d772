"""What is stopped, when and why; and that nothing else changes."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

import corevital
from corevital import GenerationRecord, Observed
from corevital.assess.risk_so_far import risk_so_far
from corevital.capture import observed_signals
from corevital.capture.criterion import Stopper
from corevital.capture.run import GenerationRun
from corevital.capture.transfer import PendingCopy
from corevital.capture.watch import InterventionWatch
from corevital.record import StoppedEarly
from tests.calibration.tiny import risk_file
from tests.capture.observe import everything_equal, observing
from tests.instrumentation import instrumented
from tests.models import GenerativeModel, tiny_model, tiny_prompt
from tests.providers import Telemetry

PROMPT = 12
PHRASE = [40, 41, 42]
TEXT = [(7 * place) % 89 + 3 for place in range(89)]
"""No token twice."""
LOOPED = 191
"""The step at which the model is caught in a loop that begins at the first: with random weights,
its states say nothing, and the tokens alone have to make 192."""


class ForcesRows(LogitsProcessor):
    """Makes each row say a text of its own."""

    def __init__(self, texts: list[list[int]]) -> None:
        self._texts = torch.tensor(texts)
        self._step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced.scatter_(1, self._texts[:, self._step, None].to(scores.device), 0.0)
        self._step += 1
        return forced


def saying(*texts: list[int]) -> dict[str, Any]:
    """Arguments of a call of ``generate`` in which each row says its text."""
    return {
        "inputs": tiny_prompt(len(texts), PROMPT),
        "do_sample": False,
        "max_new_tokens": len(texts[0]),
        "logits_processor": LogitsProcessorList([ForcesRows(list(texts))]),
    }


def looping(tokens: int, before: int = 0) -> list[int]:
    return TEXT[:before] + (PHRASE * tokens)[: tokens - before]


def broken_model(layer: int = 2) -> GenerativeModel:
    model: Any = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[layer].mlp.down_proj.weight.fill_(math.nan)
    return cast("GenerativeModel", model)


def stops(records: list[GenerationRecord]) -> list[StoppedEarly | None]:
    return [record.stopped_early for record in records]


class TestRepetition:
    def test_a_loop_ends_with_the_token_that_makes_it_one(self) -> None:
        model = tiny_model("llama")
        text = looping(250, before=10)
        plain = model.generate(**saying(text))
        with observing() as records, corevital.intervene("repetition"):
            result = model.generate(**saying(text))

        assert plain.shape[1] == PROMPT + 250
        (record,) = records
        assert record.stopped_early == StoppedEarly("repetition", LOOPED + 10)
        assert torch.equal(result, plain[:, : PROMPT + LOOPED + 11])
        assert record.token_ids.tolist() == text[: LOOPED + 11]
        assert record.finish_reason == "stop"

    @pytest.mark.parametrize("capture", ["full", "summary", "on_risk", "off"])
    def test_it_does_so_however_little_is_captured(self, capture: str) -> None:
        model = tiny_model("llama")
        with observing(capture=capture) as records, corevital.intervene("repetition"):
            result = model.generate(**saying(looping(250)))

        assert result.shape[1] == PROMPT + LOOPED + 1
        assert stops(records) == [StoppedEarly("repetition", LOOPED)]
        assert records[0].observed == (capture != "off")
        assert records[0].capture.stop_conditions == ("repetition",)
        assert records[0].capture.stop_unavailable is None

    def test_a_loop_of_the_prompt_is_none_of_the_text(self) -> None:
        model = tiny_model("llama")
        arguments = saying(TEXT) | {"inputs": torch.tensor([PHRASE * 70])}
        with observing() as records, corevital.intervene("repetition"):
            result = model.generate(**arguments)

        assert result.shape[1] == 3 * 70 + len(TEXT)
        assert stops(records) == [None]

    def test_only_the_row_that_loops_is_stopped_and_padded(self) -> None:
        model = tiny_model("llama")
        texts = [TEXT * 3, looping(267, before=5), TEXT[40:] + TEXT * 2 + TEXT[:40]]
        plain = model.generate(**saying(*texts))
        with observing() as records, corevital.intervene("repetition"):
            result = model.generate(**saying(*texts))

        assert stops(records) == [None, StoppedEarly("repetition", LOOPED + 5), None]
        assert torch.equal(result[[0, 2]], plain[[0, 2]])
        assert torch.equal(result[1, : PROMPT + LOOPED + 6], plain[1, : PROMPT + LOOPED + 6])
        assert set(result[1, PROMPT + LOOPED + 6 :].tolist()) == {model.config.pad_token_id}
        assert [record.steps for record in records] == [267, LOOPED + 6, 267]

    def test_without_an_end_token_the_record_ends_where_the_row_was_stopped(self) -> None:
        model = tiny_model("llama", eos_token_id=None)
        model.generation_config.eos_token_id = None
        with observing() as records, corevital.intervene("repetition"):
            result = model.generate(**saying(looping(220), TEXT * 2 + TEXT[:42]))

        assert result.shape[1] == PROMPT + 220
        assert [record.steps for record in records] == [LOOPED + 1, 220]

    def test_the_padding_of_a_row_that_ended_is_no_loop(self) -> None:
        model = tiny_model("llama")
        ended = [*TEXT[:5], 1, *[0] * 244]
        with observing() as records, corevital.intervene("repetition"):
            result = model.generate(**saying(ended, TEXT * 2 + TEXT[:72]))

        assert result.shape[1] == PROMPT + 250
        assert stops(records) == [None, None]


class TestNonFinite:
    @pytest.mark.parametrize("capture", ["full", "summary", "off"])
    def test_a_broken_layer_stops_at_the_first_token(self, capture: str) -> None:
        with observing(capture=capture) as records, corevital.intervene("non_finite"):
            result = broken_model().generate(tiny_prompt(), max_new_tokens=20, do_sample=False)

        assert result.shape[1] == PROMPT + 1
        assert stops(records) == [StoppedEarly("non_finite", 0)]

    def test_tokens_that_are_impossible_are_not_broken(self) -> None:
        model: Any = tiny_model("llama")

        def impossible(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            output[..., 50:] = -torch.inf
            return output

        with (
            model.lm_head.register_forward_hook(impossible),
            observing() as records,
            corevital.intervene("non_finite"),
        ):
            result = model.generate(tiny_prompt(), max_new_tokens=5, min_new_tokens=5)
        assert result.shape[1] == PROMPT + 5
        assert stops(records) == [None]

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_only_the_row_whose_logits_break_is_stopped(self, value: float) -> None:
        model: Any = tiny_model("llama")
        steps = iter(range(20))

        def breaks(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
            if next(steps) == 4:
                output[1, -1, 7] = value
            return output

        with (
            model.lm_head.register_forward_hook(breaks),
            observing(prompt=False) as records,
            corevital.intervene("non_finite"),
        ):
            model.generate(**saying(TEXT[:9], TEXT[9:18], TEXT[18:27]))
        assert stops(records) == [None, StoppedEarly("non_finite", 4), None]


class TestRisk:
    def uncertain(self, model: GenerativeModel, tokens: int = 60) -> Any:
        # The tokens of a random text surprise the model.
        return model.generate(**saying((TEXT * 3)[:tokens]))

    @pytest.mark.parametrize("capture", ["full", "summary", "on_risk", "off"])
    def test_a_score_above_the_threshold_stops(self, capture: str) -> None:
        with observing(capture=capture) as records, corevital.intervene("risk", threshold=0.5):
            result = self.uncertain(tiny_model("llama"))

        assert stops(records) == [StoppedEarly("risk", 15)]
        assert result.shape[1] == PROMPT + 16

    def test_a_score_below_the_threshold_does_not(self) -> None:
        with observing() as records, corevital.intervene("risk", threshold=1.0):
            result = self.uncertain(tiny_model("llama"))
        assert result.shape[1] == PROMPT + 60
        assert stops(records) == [None]

    @pytest.mark.parametrize("calibrated", [False, True])
    def test_the_score_so_far_is_that_of_a_text_that_ends_there(
        self,
        telemetry: Telemetry,
        calibrated: bool,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        model = tiny_model("llama")
        calibration = [risk_file(model, tmp_path)] if calibrated else []
        found: list[Observed] = []
        scores: list[float] = []

        def noted(*given: Any, **keywords: Any) -> float:
            scores.append(risk_so_far(*given, **keywords))
            return scores[-1]

        monkeypatch.setattr("corevital.telemetry.generation.risk_so_far", noted)
        with (
            instrumented(telemetry, on_generation=found.append, calibration=calibration),
            corevital.intervene("risk", threshold=1.0),
        ):
            for tokens in (16, 24, 32):
                self.uncertain(model, tokens)

        finals = [each.assessment.risk for each in found if each.assessment is not None]
        # Estimated at 16, at 16 and 24, and at 16, 24 and 32 tokens.
        np.testing.assert_allclose(
            scores, [finals[place].score for place in (0, 0, 1, 0, 1, 2)], rtol=1e-5
        )
        assert len({each.score for each in finals}) == 3
        assert {each.source.value for each in finals} == {
            "calibrated" if calibrated else "uncalibrated"
        }

    def test_a_loop_raises_the_risk(self) -> None:
        with observing() as records, corevital.intervene("risk", threshold=0.95):
            tiny_model("llama").generate(**saying(looping(250)))
        (stopped,) = stops(records)
        assert stopped is not None
        assert stopped.reason == "risk"


class Streamed(BaseStreamer):
    """Keeps what is streamed."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended += 1


class TestStreamer:
    @pytest.mark.parametrize("raises", [False, True])
    def test_it_gets_every_token_and_is_ended(self, raises: bool) -> None:
        streamer = Streamed()
        with (
            observing(),
            corevital.intervene("non_finite", raises=raises),
            pytest.raises(corevital.GenerationStopped) if raises else nullcontext(),
        ):
            broken_model().generate(tiny_prompt(), max_new_tokens=20, streamer=streamer)
        assert len(streamer.tokens) == PROMPT + 1
        assert streamer.ended == 1


class TestException:
    def test_the_caller_gets_everything_so_far(self) -> None:
        model = tiny_model("llama")
        plain = model.generate(**saying(looping(250)))
        with (
            observing() as records,
            corevital.intervene("repetition", raises=True),
            pytest.raises(corevital.GenerationStopped) as raised,
        ):
            model.generate(**saying(looping(250)))

        assert (raised.value.reason, raised.value.step) == ("repetition", LOOPED)
        assert torch.equal(raised.value.input_ids, plain[:, : PROMPT + LOOPED + 1])
        assert stops(records) == [StoppedEarly("repetition", LOOPED)]

    def test_one_row_of_a_batch_ends_the_call(self) -> None:
        model = tiny_model("llama")
        with (
            observing() as records,
            corevital.intervene("repetition", raises=True),
            pytest.raises(corevital.GenerationStopped) as raised,
        ):
            model.generate(**saying(TEXT * 3, looping(267)))
        assert raised.value.step < 266
        assert raised.value.input_ids.shape == (2, PROMPT + raised.value.step + 1)
        assert stops(records) == [None, StoppedEarly("repetition", raised.value.step)]

    def test_a_generation_that_is_not_stopped_raises_nothing(self) -> None:
        model = tiny_model("llama")
        plain = model.generate(**saying(TEXT))
        with observing(), corevital.intervene(["repetition", "non_finite"], raises=True):
            assert torch.equal(model.generate(**saying(TEXT)), plain)


class TestChoice:
    def stopped_at(self, model: GenerativeModel | None = None) -> int:
        return (
            int((model or tiny_model("llama")).generate(**saying(looping(230))).shape[1]) - PROMPT
        )

    def test_without_any_nothing_is_stopped(self) -> None:
        with observing():
            assert self.stopped_at() == 230

    def test_the_setting_holds_everywhere(self) -> None:
        with observing(intervene="repetition, non_finite"):
            assert self.stopped_at() == LOOPED + 1

    def test_the_environment_sets_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COREVITAL_INTERVENE", "repetition")
        monkeypatch.setenv("COREVITAL_INTERVENE_RAISES", "true")
        with observing(), pytest.raises(corevital.GenerationStopped):
            self.stopped_at()

    def test_a_block_overrides_the_setting(self) -> None:
        with observing(intervene="repetition"):
            with corevital.intervene(on=()):
                assert self.stopped_at() == 230
            with corevital.intervene("non_finite"):
                assert self.stopped_at() == 230
            assert self.stopped_at() == LOOPED + 1

    def test_threads_have_blocks_of_their_own(self) -> None:
        model = tiny_model("llama")
        found: dict[str, int] = {}

        def generate(name: str) -> None:
            with corevital.intervene("repetition") if name == "stopped" else nullcontext():
                found[name] = self.stopped_at(model)

        with observing():
            threads = [threading.Thread(target=generate, args=(n,)) for n in ("stopped", "not")]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert found == {"stopped": LOOPED + 1, "not": 230}


class TestNothingElse:
    def test_without_an_intervention_the_criteria_are_those_of_before(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[object] = []
        monkeypatch.setattr(Stopper, "__init__", lambda self, run: made.append(run))
        with observing():
            tiny_model("llama").generate(**saying(TEXT[:5]))
        assert made == []

    def test_a_step_that_stops_nothing_answers_with_one_shared_tensor(self) -> None:
        answers: set[int] = set()

        def noted(answer: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
            def call(run: GenerationRun, input_ids: torch.Tensor) -> torch.Tensor:
                given = answer(run, input_ids)
                assert not given.any()
                answers.add(id(given))
                return given

            return call

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(GenerationRun, "rows_to_stop", noted(GenerationRun.rows_to_stop))
            with observing(intervene="repetition,risk"):
                tiny_model("llama").generate(**saying(TEXT[:12]))
        assert len(answers) == 1

    @pytest.mark.parametrize("sample", [False, True])
    def test_outputs_that_are_not_stopped_are_the_same(self, sample: bool) -> None:
        model = tiny_model("llama")
        arguments = {
            "inputs": tiny_prompt(2),
            "do_sample": sample,
            "max_new_tokens": 30,
            "return_dict_in_generate": True,
            "output_scores": True,
            "output_logits": True,
            "output_hidden_states": True,
        }
        torch.manual_seed(3)
        plain, state = model.generate(**arguments), torch.get_rng_state()
        torch.manual_seed(3)
        with observing(intervene="repetition,non_finite,risk", intervene_threshold=1.0):
            result = model.generate(**arguments)
        assert everything_equal(result, plain)
        assert torch.equal(torch.get_rng_state(), state)

    def test_what_is_captured_is_the_same(self) -> None:
        model = tiny_model("llama")
        on = "repetition,non_finite,risk"
        with observing() as plain:
            model.generate(**saying(TEXT))
        with observing(intervene=on, intervene_threshold=1.0) as watched:
            model.generate(**saying(TEXT))
        for part in ("logits", "hidden", "attention"):
            left, right = getattr(plain[0], part), getattr(watched[0], part)
            for field in fields(left):
                before, after = getattr(left, field.name), getattr(right, field.name)
                if isinstance(before, np.ndarray):
                    np.testing.assert_allclose(after, before, 1e-3, 1e-3, err_msg=field.name)

    def test_a_failure_of_its_own_is_logged_once_and_the_generation_goes_on(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(*_: object) -> None:
            raise RuntimeError("of the test")

        monkeypatch.setattr(InterventionWatch, "_judge", fail)
        monkeypatch.setattr(observed_signals, "_already_logged", set())
        with (
            observing(intervene="repetition,non_finite") as records,
            caplog.at_level(logging.WARNING),
        ):
            for _ in range(2):
                result = broken_model().generate(**saying(looping(100)))
                assert result.shape[1] == PROMPT + 100
        (line,) = caplog.records
        assert "intervention" in line.getMessage()
        for record in records:
            assert record.capture.failures == 1
            assert record.capture.stop_unavailable == "RuntimeError: of the test"
            assert record.stopped_early is None


class Late(PendingCopy):
    """A copy that arrives while the next step is computed, as from an accelerator."""

    now = 0

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        self._begun = Late.now

    @property
    def arrived(self) -> bool:
        return Late.now > self._begun


class TestOnAnAccelerator:
    """With copies that arrive late; a real one is waited for by `generate` itself at each step."""

    @pytest.fixture(autouse=True)
    def late_copies(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def decide(watch: InterventionWatch, run: GenerationRun, input_ids: torch.Tensor) -> Any:
            Late.now += 1
            return on_time(watch, run, input_ids)

        on_time = InterventionWatch.decide
        monkeypatch.setattr(InterventionWatch, "decide", decide)
        monkeypatch.setattr("corevital.capture.watch.PendingCopy", Late)
        monkeypatch.setattr("corevital.capture.snapshot.PendingCopy", Late)

    def test_a_loop_is_stopped_one_step_late(self) -> None:
        with observing() as records, corevital.intervene("repetition"):
            tiny_model("llama").generate(**saying(looping(250, before=10)))
        assert stops(records) == [StoppedEarly("repetition", LOOPED + 11)]

    def test_nan_stops_at_once(self) -> None:
        with observing() as records, corevital.intervene("non_finite"):
            result = broken_model().generate(tiny_prompt(), max_new_tokens=20, do_sample=False)
        assert result.shape[1] == PROMPT + 1
        assert stops(records) == [StoppedEarly("non_finite", 0)]

    def test_nan_raises_at_once(self) -> None:
        with (
            observing(),
            corevital.intervene("non_finite", raises=True),
            pytest.raises(corevital.GenerationStopped) as raised,
        ):
            broken_model().generate(tiny_prompt(), max_new_tokens=20, do_sample=False)
        assert raised.value.input_ids.shape[1] == PROMPT + 1

    def test_risk_stops_one_step_late(self) -> None:
        with observing() as records, corevital.intervene("risk", threshold=0.5):
            tiny_model("llama").generate(**saying(TEXT[:60]))
        assert stops(records) == [StoppedEarly("risk", 16)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
class TestOnAGpu:
    @pytest.fixture
    def model(self, monkeypatch: pytest.MonkeyPatch) -> GenerativeModel:
        """A model on a GPU, where waiting for the device while deciding is an error."""

        def decide(watch: InterventionWatch, run: GenerationRun, input_ids: torch.Tensor) -> Any:
            torch.cuda.set_sync_debug_mode("error")
            try:
                return waiting(watch, run, input_ids)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        waiting = InterventionWatch.decide
        monkeypatch.setattr(InterventionWatch, "decide", decide)
        model: Any = tiny_model("llama")
        return cast("GenerativeModel", model.to("cuda"))

    @pytest.mark.parametrize(
        ("on", "reason", "step"),
        [("repetition", "repetition", LOOPED + 1), ("risk", "risk", 16)],
    )
    def test_it_acts_one_step_late_at_most(
        self, model: GenerativeModel, on: str, reason: str, step: int
    ) -> None:
        arguments = saying(looping(230))
        arguments["inputs"] = arguments["inputs"].to("cuda")
        with observing() as records, corevital.intervene(on, threshold=0.5):
            model.generate(**arguments)
        (stopped,) = stops(records)
        assert stopped is not None
        assert stopped.reason == reason
        assert stopped.step <= step
        assert records[0].capture.failures == 0
