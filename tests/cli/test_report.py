"""The report as a person reads it."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.color import Color
from rich.console import Console, RenderableType
from rich.style import Style

from corevital.assess.assessment import Assessment
from corevital.assess.blame import LayerBlame
from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.assess.early_warning import EarlyWarning
from corevital.assess.flags import HealthFlags
from corevital.assess.heuristic_risk import RiskFactor
from corevital.assess.loops import Loop
from corevital.assess.risk import Risk, RiskLevel, RiskSource
from corevital.assess.signals import CompoundSignal
from corevital.cli.export import Delivery
from corevital.cli.outcome import Outcome
from corevital.cli.palette import BAD, GOOD, LEVEL_COLOURS, NOTABLE
from corevital.cli.report import HealthReport, trace_section
from corevital.record import Captured, CaptureMode, GenerationRecord, PromptColumns
from tests.assess.records import (
    attention_columns,
    floats,
    hidden_columns,
    logit_columns,
    record,
)
from tests.cli.outcomes import ARRIVED, TO_COLLECTOR, TO_FILE, calm_record, outcome

CALM = Assessment(
    flags=HealthFlags(),
    signals=(),
    early_warning=EarlyWarning(0.0, ()),
    blame=(),
    risk=Risk(0.0, RiskLevel.LOW, RiskSource.UNCALIBRATED, 0.0, ()),
)


def drawn(shown: RenderableType, width: int = 80, **console: Any) -> str:
    """What a console that is no terminal shows."""
    target = Console(file=io.StringIO(), width=width, **console)
    with target.capture() as captured:
        target.print(shown)
    return captured.get()


def report(shown: Outcome | None = None, width: int = 80, **console: Any) -> str:
    return drawn(HealthReport(outcome() if shown is None else shown), width, **console)


def words(text: str) -> str:
    """The text without line breaks and the spaces of the layout."""
    return " ".join(text.split())


def assessed(**parts: Any) -> Outcome:
    """A calm run whose assessment is calm but for ``parts``."""
    return outcome(assessment=replace(CALM, **parts))


def everything_observed(made: GenerationRecord) -> GenerationRecord:
    seen = Captured(True)
    capture = replace(made.capture, logits=seen, hidden=seen, attention=seen, prompt=seen)
    return replace(made, capture=capture)


def troubled() -> Outcome:
    """A run in which everything that can be reported is."""
    steps = 400
    made = record(
        logits=logit_columns(
            entropy=[5.0, math.nan, 9.0, 1.0] * (steps // 4),
            surprisal=[12.0, 0.0, 3.0, 1.5] * (steps // 4),
            margin=[0.05] * steps,
            top_k_mass=[0.5] * steps,
        ),
        hidden=hidden_columns(
            [[1.0, 1.0, 100.0, 1.0]] * steps, non_finite=[[False, False, True, False]] * steps
        ),
        attention=attention_columns([[9, 9, 9, 9]] * steps),
        basin=[[0.1]],
    )
    return outcome(
        made,
        Assessment(
            HealthFlags(True, True, True, True, 0.8, 200),
            tuple(CompoundSignal(f"signal_{n}", n / 5, "numbers in words " * 6) for n in range(5)),
            EarlyWarning(0.9, tuple(f"warning_{n}" for n in range(8))),
            tuple(LayerBlame(n, n / 9, ("reason " * 15,)) for n in range(9)),
            Risk(
                1.0,
                RiskLevel.CRITICAL,
                RiskSource.UNCALIBRATED,
                1.0,
                tuple(RiskFactor(f"factor_{n}", 0.1) for n in range(10)),
            ),
        ),
        token_texts=("\x1b[31m", "日本語", "\n", "x" * 60) * (steps // 4),
    )


def test_the_report_begins_with_the_narrative() -> None:
    shown = outcome()
    text = words(report(shown))

    assert shown.narrative is not None
    assert f"Summary {shown.narrative}" in text
    assert 'token " word0"' in shown.narrative


def test_without_observations_there_is_no_narrative() -> None:
    shown = outcome(record())

    assert shown.narrative is None
    assert "Summary" not in report(shown)


def test_the_risk_comes_with_its_level_and_what_makes_it_up() -> None:
    factors = (RiskFactor("repetition_loop", 0.5), RiskFactor("elevated_entropy", 0.0912))
    text = report(
        assessed(risk=Risk(0.4321, RiskLevel.MODERATE, RiskSource.CALIBRATED, 0.5912, factors))
    )

    assert "0.43 moderate (calibrated)" in text
    assert "heuristic 0.59" in text
    assert "+0.50  repetition_loop" in text
    assert "+0.09  elevated_entropy" in text


@pytest.mark.parametrize(("score", "filled"), [(0.0, 0), (0.5, 15), (1.0, 30)])
def test_the_bar_is_as_long_as_the_score(score: float, filled: int) -> None:
    line = next(
        line
        for line in report(
            assessed(risk=Risk(score, RiskLevel.LOW, RiskSource.UNCALIBRATED, 0.0, ()))
        ).splitlines()
        if line.startswith("Risk")
    )

    assert (line.count("━"), line.count("─")) == (filled, 30 - filled)


def test_a_healthy_run_is_said_to_be_healthy() -> None:
    text = report(outcome(everything_observed(calm_record()), CALM))

    assert "no flag raised Signals" in words(text)
    assert "no compound signal" in text
    assert "no early warning" in text
    assert "no layer stands out" in text


def test_flags_that_could_not_be_raised_are_not_said_to_be_down() -> None:
    assert "no flag raised by what was captured" in report(assessed())


def test_raised_flags_are_explained() -> None:
    text = report(assessed(flags=HealthFlags(repetition_loop=True)))

    assert "repetition_loop: the last layer's states stopped changing" in text
    assert "mid_layer_anomaly" not in text


@pytest.mark.parametrize(
    ("loop", "said"),
    [
        (Loop(88, 17, 212), "the last 212 tokens repeat a phrase of 17 tokens, from step 88"),
        (Loop(9, 1, 100), "the last 100 tokens repeat one token, from step 9"),
        (Loop(5, 2, 99, 104), "99 tokens repeat a phrase of 2 tokens, from step 5 to 103"),
    ],
)
def test_a_loop_is_put_in_words(loop: Loop, said: str) -> None:
    shorter = Loop(0, 3, 96, 96)

    assert f"repetition: {said} Signals" in words(report(assessed(loops=(shorter, loop))))


def test_compound_signals_come_with_their_evidence() -> None:
    signal = CompoundSignal("context_loss", 0.75, "recent entropy 5.00 bits")

    assert "0.75  context_loss: recent entropy 5.00 bits" in report(assessed(signals=(signal,)))


def test_early_warnings_are_named() -> None:
    warning = EarlyWarning(0.6, ("margin_collapsed", "surprisal_volatile"))

    assert "0.60  margin_collapsed, surprisal_volatile" in report(assessed(early_warning=warning))


def test_a_baseline_is_shown_with_its_worst_anomalies() -> None:
    anomalies = tuple(
        Anomaly("entropy", (), None, Direction.HIGHER, 9.0 - number, f"quantity {number} higher")
        for number in range(7)
    )
    shown = words(
        report(outcome(assessment=replace(CALM, divergence=Divergence("m@0", 0.97, anomalies))))
    )

    assert "Baseline 0.97 further off than healthy runs (m@0) quantity 0 higher" in shown
    assert "quantity 4 higher" in shown
    assert "quantity 5 higher" not in shown


def test_a_run_like_those_of_the_baseline_is_said_to_be_so() -> None:
    shown = replace(CALM, divergence=Divergence("m@0", 0.12))

    assert "Baseline 0.12 like healthy runs (m@0)" in words(report(outcome(assessment=shown)))


def test_a_baseline_that_could_not_be_applied_says_why() -> None:
    refused = replace(CALM, calibration_refused="baseline b.json is not applied: made for m")
    unseen = replace(CALM, divergence=Divergence("m@0", None))

    assert "Baseline baseline b.json is not applied" in words(report(outcome(assessment=refused)))
    assert "Baseline nothing of what it knows" in words(report(outcome(assessment=unseen)))


def test_without_a_baseline_nothing_is_said_of_it() -> None:
    assert "Baseline" not in report()


def test_entropy_is_a_line_with_one_mark_for_each_token() -> None:
    made = record(logits=logit_columns(entropy=[0.0, 4.0, 8.0, math.nan], surprisal=[0.0] * 4))
    text = report(outcome(made))

    assert "▁▅█!" in text
    assert "one mark a token, full height 8.0 bits" in text
    assert "mean 4.00, largest 8.00 bits; 1 of 4 above 4" in text


def test_a_run_that_was_sure_of_everything_looks_calm() -> None:
    assert "▂▂▂▂" in report(outcome(calm_record()))


def test_a_long_line_is_wrapped_and_a_very_long_one_condensed() -> None:
    def marks(tokens: int) -> list[int]:
        lines = report(outcome(calm_record(tokens)), width=31).splitlines()
        return [line.count("▂") for line in lines if "▂" in line]

    assert marks(30) == [20, 10]
    assert marks(161) == [20] * 4 + [1]
    assert "one mark for the largest of 2 tokens" in words(report(outcome(calm_record(161)), 31))


def test_the_most_surprising_tokens_are_shown_where_they_stand() -> None:
    made = record(logits=logit_columns(entropy=[1.0] * 4, surprisal=[2.0, 0.9, 7.25, math.nan]))
    text = report(outcome(made, token_texts=("The", " sky", " is", "\n")))

    assert text.index("7.2 bits  step 2  The sky [is]") < text.index("2.0 bits  step 0  [The]")
    assert "0.9 bits" not in text


def test_of_a_long_text_only_the_last_words_before_a_token_are_shown() -> None:
    made = record(logits=logit_columns(entropy=[0.0] * 30, surprisal=[0.0] * 29 + [5.0]))
    texts = tuple(f" word{number}" for number in range(30))

    assert "step 29  ...word26 word27 word28 [word29]" in report(outcome(made, token_texts=texts))


def test_a_language_without_spaces_has_words_before_a_token_too() -> None:
    made = record(logits=logit_columns(entropy=[0.0] * 30, surprisal=[0.0] * 29 + [5.0]))

    assert "...語語語" in report(outcome(made, token_texts=("語",) * 30))


def test_a_run_without_surprises_says_so() -> None:
    assert "no token above 1 bit" in report()


def test_layers_at_fault_are_listed_from_the_worst_on() -> None:
    blame = tuple(LayerBlame(layer, layer / 10, (f"fault {layer}",)) for layer in range(1, 8))
    text = report(assessed(blame=blame))

    assert text.index("0.70  layer 7: fault 7") < text.index("0.30  layer 3: fault 3")
    assert "and layers 1, 2" in text
    assert "fault 2" not in text


def test_every_reason_of_a_layer_is_given() -> None:
    blame = (LayerBlame(3, 0.5, ("norm too large", "norm unstable")),)

    assert "layer 3: norm too large; norm unstable" in report(assessed(blame=blame))


def test_the_prompt_is_summarised() -> None:
    prompt = PromptColumns(
        surprisal=floats([1.0, 3.0]),
        layer_transformation=floats([0.5, 0.25]),
        basin=floats([[0.5, np.nan], [0.25, 0.75]]),
    )
    text = words(report(outcome(replace(calm_record(), prompt=prompt), is_chat=True)))

    assert "3 tokens (chat template)" in text
    assert "surprisal mean 2.00, largest 3.0 bits" in text
    assert "layer transformation 0.375" in text
    assert "basin score 0.50" in text


def test_what_was_not_captured_is_named_with_the_reason() -> None:
    made = calm_record()
    no_attention = Captured(False, "the model has no attention")
    capture = replace(
        everything_observed(made).capture, attention=no_attention, mode=CaptureMode.ON_RISK
    )
    capture = replace(capture, full_from_step=2, failures=1)
    text = words(report(outcome(replace(made, capture=capture))))

    assert "logits, hidden states, prompt (mode on_risk, everything from step 2 on)" in text
    assert "not attention: the model has no attention" in text
    assert "failures while observing: 1" in text


def test_a_run_that_was_not_observed_has_timing_and_the_reason() -> None:
    unseen = Captured(False, "capture is off")
    made = replace(calm_record(), logits=None)
    capture = replace(
        made.capture,
        mode=CaptureMode.OFF,
        logits=unseen,
        hidden=unseen,
        attention=unseen,
        prompt=unseen,
    )
    text = report(outcome(replace(made, capture=capture)))

    assert "not logits, hidden states, attention, prompt: capture is off" in text
    assert "4 tokens in 5.00 s" in text
    for absent in ("Risk", "Entropy", "Layers", "capturing"):
        assert absent not in text


def test_timing_and_the_cost_of_capture_are_told() -> None:
    text = report()

    assert "4 tokens in 5.00 s, ended by --max-new-tokens" in text
    assert "first token after 1.00 s, then 1.0 tokens/s" in text
    assert "capturing took 250 ms of it (5.0%)" in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"interrupted": True}, "interrupted"), ({"record": None}, "ended by itself")],
)
def test_how_the_text_ended_is_told(changes: dict[str, Any], said: str) -> None:
    if "record" in changes:
        changes = {"record": replace(calm_record(), finish_reason="stop")}

    assert f"4 tokens in 5.00 s, {said}" in report(outcome(**changes))


def test_the_model_and_where_it_ran_are_in_the_title() -> None:
    made = calm_record()
    model = replace(made.model, name="tiny", layers=4)

    title = report(outcome(replace(made, model=model))).splitlines()[0]

    assert title.startswith("CoreVital  tiny, 4 layers, float32 on cpu ─")


def test_the_trace_is_where_it_was_sent() -> None:
    text = words(drawn(trace_section(outcome(), Delivery(TO_COLLECTOR, None))))

    assert "Trace 0af7651916cd43dd8448eb211c80319c" in text
    assert "sent to http://collector:4317 (traces, metrics, logs)" in text


def test_the_trace_is_in_the_file_when_there_is_no_endpoint() -> None:
    text = words(drawn(trace_section(outcome(), ARRIVED)))

    assert "appended to traces.jsonl, as there is no --otlp-endpoint" in text


def test_a_trace_that_did_not_arrive_is_not_said_to_be_anywhere() -> None:
    text = words(drawn(trace_section(outcome(), Delivery(TO_FILE, "disk full"))))

    assert "not all of the telemetry was delivered" in text
    assert "traces.jsonl" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    text = report(troubled(), width)

    assert max(Console().measure(line).maximum for line in text.splitlines()) <= width


def test_nothing_but_text_reaches_what_is_no_terminal() -> None:
    text = report(troubled())

    assert "\\x1b[31m" in text
    assert all(character.isprintable() or character == "\n" for character in text)


def test_without_colours_nothing_is_lost() -> None:
    plain = report(troubled())
    coloured = Console(
        file=io.StringIO(), width=80, force_terminal=True, color_system="truecolor", record=True
    )
    coloured.print(HealthReport(troubled()))

    assert coloured.export_text() == plain


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    assert "38;" not in report(troubled(), force_terminal=True, color_system="truecolor")


def test_a_terminal_without_unicode_gets_ascii() -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii", errors="replace")
    Console(file=stream, width=80).print(HealthReport(outcome()))
    stream.flush()
    text = written.getvalue().decode("ascii")

    assert "?" not in text
    assert "----" in text


@pytest.mark.parametrize("colour", [GOOD, NOTABLE, BAD, *LEVEL_COLOURS.values()])
@pytest.mark.parametrize("background", [(0, 0, 0), (255, 255, 255)])
def test_colours_can_be_read_on_dark_and_on_light(
    colour: str, background: tuple[int, int, int]
) -> None:
    foreground = Style.parse(colour).color
    assert isinstance(foreground, Color)

    # WCAG 2, success criterion 1.4.11.
    assert contrast(tuple(foreground.get_truecolor()), background) >= 3


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """The contrast ratio of two colours by WCAG 2."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: tuple[int, ...]) -> float:
    linear = [
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (channel / 255 for channel in colour)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
