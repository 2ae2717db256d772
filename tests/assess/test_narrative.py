"""The narrative says what was found, with its numbers, and nothing that was not."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest

from corevital.assess import Profile, assess
from corevital.assess.assessment import Assessment
from corevital.assess.blame import LayerBlame
from corevital.assess.consistency import Violation
from corevital.assess.divergence import Anomaly, Direction, Divergence
from corevital.assess.early_warning import SEVERITY, EarlyWarning
from corevital.assess.flags import HealthFlags
from corevital.assess.heuristic_risk import RiskFactor
from corevital.assess.loops import Loop
from corevital.assess.narrative import narrative
from corevital.assess.risk import Risk, RiskLevel, RiskSource
from corevital.assess.signals import SEVERITY as SIGNAL_SEVERITY
from corevital.assess.signals import CompoundSignal
from corevital.record import Captured, GenerationRecord, StoppedEarly
from tests.assess.records import attention_columns, hidden_columns, logit_columns, record

NAN = math.nan
ENTROPY = [0.5, 1.0, 3.0, 0.5]
TEXTS = ("The", " sky", " is", " blue")


def observed(entropy: list[float] | None = None) -> GenerationRecord:
    """Everything was observed, and nothing is conspicuous."""
    bits = ENTROPY if entropy is None else entropy
    steps = len(bits)
    return record(
        logits=logit_columns(
            entropy=bits, surprisal=[0.8] * steps, margin=[0.75] * steps, top_k_mass=[0.9] * steps
        ),
        hidden=hidden_columns([[1.0, 1.0, 1.0]] * steps),
        attention=attention_columns([[0, 0, 0]] * steps),
    )


CLEAN = Assessment(
    flags=HealthFlags(),
    signals=(),
    early_warning=EarlyWarning(0.0, ()),
    blame=(),
    risk=Risk(
        0.12, RiskLevel.LOW, RiskSource.UNCALIBRATED, 0.12, (RiskFactor("elevated_entropy", 0.12),)
    ),
)


def told(generation: GenerationRecord | None = None, **parts: Any) -> str:
    return narrative(observed() if generation is None else generation, replace(CLEAN, **parts))


def sentences(text: str) -> list[str]:
    return re.split(r"(?<=\.) (?=[A-Z])", text)


# A clean generation


def test_a_healthy_run_says_so_with_its_numbers_in_two_sentences() -> None:
    assert sentences(told()) == [
        "Low risk (0.12) over 4 tokens: no flag, signal or early warning, and no layer stands out.",
        "Entropy averages 1.25 bits and peaks at 3.00 (step 2); the margin averages 0.75.",
    ]


def test_what_assess_finds_healthy_is_told_as_healthy() -> None:
    generation = observed()

    text = narrative(generation, assess(generation, Profile()))

    assert len(sentences(text)) == 2
    assert "no flag, signal or early warning" in text


def test_one_token_is_singular() -> None:
    assert sentences(told(observed([2.0]))) == [
        "Low risk (0.12) over 1 token: no flag, signal or early warning, and no layer stands out.",
        "Entropy is 2.00 bits (step 0); the margin averages 0.75.",
    ]


@pytest.mark.parametrize(
    ("reason", "words"),
    [("repetition", "repetition"), ("non_finite", "NaN or Inf"), ("risk", "its risk")],
)
def test_a_text_that_was_cut_is_told_to_be(reason: str, words: str) -> None:
    cut = replace(observed(), stopped_early=StoppedEarly(reason, 3))
    assert told(cut).startswith(f"Low risk (0.12) over 4 tokens, stopped there for {words}:")


# Tokens


def test_the_token_of_the_peak_is_told_only_when_its_text_is_given() -> None:
    assert '(step 2, token " is")' in narrative(observed(), CLEAN, TEXTS)
    assert "token" not in narrative(observed(), CLEAN).replace("4 tokens", "")


def test_the_peak_is_where_entropy_was_observed() -> None:
    text = narrative(observed([1.0, NAN, math.inf, 2.0]), CLEAN, TEXTS)

    assert 'averages 1.50 bits and peaks at 2.00 (step 3, token " blue")' in text


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        ("\n", r'"\n"'),
        ("\x1b[31m\x00", r'"\x1b[31m\x00"'),
        ("🧑‍🚀", '"🧑\\u200d🚀"'),
        ("x" * 10_000, '"' + "x" * 21 + '..."'),
        ("\ud800", r'"\ud800"'),
        ("\n" * 10_000, '"' + r"\n" * 10 + r"\..." + '"'),
        ("", '""'),
    ],
)
def test_hostile_token_texts_stay_short_and_on_one_line(token: str, shown: str) -> None:
    text = narrative(observed(), CLEAN, [token] * 4)

    assert f"token {shown})" in text
    assert text.isprintable()
    assert len(text.encode()) < 400


def test_texts_that_do_not_reach_the_peak_are_not_needed() -> None:
    assert narrative(observed(), CLEAN, ["The"]) == narrative(observed(), CLEAN)


# What was not observed


def test_what_was_not_observed_is_told_with_the_reason() -> None:
    generation = observed()
    without = replace(
        generation,
        attention=None,
        capture=replace(generation.capture, attention=Captured(False, "no attention interface")),
    )

    text = told(without)

    assert text.startswith(
        "Low risk (0.12) over 4 tokens, judged without attention (no attention interface): no flag"
    )


def test_no_layer_is_said_not_to_stand_out_when_no_layer_was_observed() -> None:
    text = told(record(logits=logit_columns(entropy=ENTROPY)))

    assert "judged without hidden states and attention:" in text
    assert "layer" not in text


def test_layers_that_were_not_observed_are_counted() -> None:
    generation = observed()
    summary = replace(generation, model=replace(generation.model, layers=30))

    assert "judged by the logits and 3 of 30 layers:" in told(summary)
    assert "judged without logits and by 3 of 30 layers:" in told(
        replace(summary, logits=None, capture=replace(summary.capture, logits=Captured(False)))
    )


def test_an_escalated_capture_says_from_when_on_it_saw_everything() -> None:
    generation = observed()
    escalated = replace(generation, capture=replace(generation.capture, full_from_step=16))

    assert "judged by every layer from step 16 on" in told(escalated)


def test_numbers_that_were_not_observed_are_not_told() -> None:
    only_hidden = told(record(hidden=hidden_columns([[1.0]])))
    only_entropy = told(record(logits=logit_columns(entropy=[1.0, 2.0])))

    assert sentences(only_hidden)[1] == "Its next-token entropy is not known."
    assert sentences(only_entropy)[1] == "Entropy averages 1.50 bits and peaks at 2.00 (step 1)."


def test_no_tokens_at_all_is_a_narrative_too() -> None:
    text = told(record(logits=logit_columns(entropy=[])))

    assert text.startswith("Low risk (0.12) over 0 tokens")


# What is wrong


def test_the_largest_causes_of_a_risk_are_named() -> None:
    factors = (
        RiskFactor("elevated_entropy", 0.1),
        RiskFactor("attention_collapse", 0.0),
        RiskFactor("compound:context_loss", 0.75),
        RiskFactor("low_topk_mass", 0.12),
    )

    text = told(risk=Risk(0.9, RiskLevel.CRITICAL, RiskSource.CALIBRATED, 0.97, factors))

    assert text.startswith(
        "Critical risk (0.90, calibrated) over 4 tokens; the heuristic (0.97) names context loss "
        "(0.75) and a low top-k mass (0.12). "
    )


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (1, "1 of 4 steps counts as high-entropy"),
        (3, "3 of 4 steps count as high-entropy"),
    ],
)
def test_high_entropy_steps_are_counted(steps: int, words: str) -> None:
    assert words in told(flags=HealthFlags(high_entropy_steps=steps))


@pytest.mark.parametrize("name", SIGNAL_SEVERITY)
def test_every_signal_is_told_in_words_with_its_evidence(name: str) -> None:
    text = told(signals=(CompoundSignal(name, 0.5, "entropy 5.00 bits"),))

    assert "(entropy 5.00 bits)." in text
    assert name not in text
    assert sentences(text)[2].startswith("It")


def test_the_severest_signals_are_told_and_the_others_counted() -> None:
    signals = tuple(
        CompoundSignal(name, severity, f"evidence of {name}")
        for name, severity in SIGNAL_SEVERITY.items()
    )

    text = told(signals=signals)

    assert "(evidence of context_loss); it degenerates" in text
    assert "(evidence of degenerating_generation); 3 more signals of this kind." in text


@pytest.mark.parametrize("name", SEVERITY)
def test_every_early_warning_is_told_in_words(name: str) -> None:
    flags = replace(HealthFlags(), **({name: True} if hasattr(HealthFlags(), name) else {}))

    text = told(flags=flags, early_warning=EarlyWarning(SEVERITY[name], (name,)))

    assert name not in text
    heading = "Flag: " if flags != HealthFlags() else "Early warning: "
    assert sum(sentence.startswith(heading) for sentence in sentences(text)) == 1
    assert "no flag" not in text


def test_flags_and_warnings_share_a_sentence() -> None:
    text = told(
        flags=HealthFlags(nan_or_inf=True, attention_collapse=True),
        early_warning=EarlyWarning(0.7, ("margin_collapsed", "surprisal_volatile")),
    )

    assert (
        "Flags: NaN or Inf in the model's numbers and attention heads collapsed onto single keys; "
        "early warnings: the margin has collapsed and surprisal is volatile."
    ) in text


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        (Loop(88, 17, 212), "Its last 212 tokens from step 88 on repeat a phrase of 17 tokens"),
        (Loop(5, 1, 99, 104), "Its 99 tokens from step 5 on repeat one token"),
    ],
)
def test_a_loop_is_told_with_where_it_begins(loop: Loop, words: str) -> None:
    text = told(loops=(loop,))

    assert words in text
    assert f"Drop the text from step {loop.onset_step + loop.period} on" in text


def test_the_worst_anomaly_against_the_baseline_is_told() -> None:
    anomaly = Anomaly("entropy", (), None, Direction.HIGHER, 2.0, "entropy higher: 5.1 bits")

    text = told(divergence=Divergence("baseline", 0.8, (anomaly,)))

    assert "Unlike healthy runs: entropy higher: 5.1 bits." in text
    assert "no flag" not in text


def test_a_calm_run_with_a_layer_that_stands_out() -> None:
    assert sentences(told(blame=(LayerBlame(7, 0.4, ("collapsed heads",)),))) == [
        "Low risk (0.12) over 4 tokens: no flag, signal or early warning.",
        "Entropy averages 1.25 bits and peaks at 3.00 (step 2); the margin averages 0.75.",
        "Layer 7 stands out (collapsed heads).",
        "Compare layer 7 with that of a healthy run of the same model.",
    ]


def test_the_worst_layers_are_told_with_their_reasons() -> None:
    blame = (
        LayerBlame(2, 0.3, ("L2 norm varies",)),
        LayerBlame(7, 1.0, ("NaN", "collapsed heads")),
        LayerBlame(9, 0.5, ("large norm",)),
    )

    assert (
        "Layer 7 stands out (NaN; collapsed heads), layer 9 stands out (large norm) and so does "
        "1 other."
    ) in told(blame=blame)
    assert "Layer 7 stands out (NaN; collapsed heads)." in told(blame=blame[1:2])
    assert "and so do 2 others." in told(blame=(*blame, LayerBlame(11, 0.3, ("x",))))


# What to do


@pytest.mark.parametrize(
    ("parts", "advice"),
    [
        (
            {
                "flags": HealthFlags(nan_or_inf=True),
                "blame": (LayerBlame(4, 1.0, ("x",)), LayerBlame(5, 1.0, ("x",))),
            },
            "Check the weights of layer 4, the first with it, and run again in float32.",
        ),
        (
            {"flags": HealthFlags(nan_or_inf=True), "blame": (LayerBlame(4, 0.5, ("x",)),)},
            "Check the weights, and run again in float32.",
        ),
        (
            {"flags": HealthFlags(repetition_loop=True)},
            "Read the text from step 0 on; if it repeats, set repetition_penalty or "
            "no_repeat_ngram_size.",
        ),
        (
            {"signals": (CompoundSignal("context_loss", 0.75, "x"),)},
            "Shorten the prompt, or move what matters to its beginning or end.",
        ),
        (
            {"signals": (CompoundSignal("degenerating_generation", 0.7, "x"),)},
            "Allow fewer than 4 new tokens, or ask for a shorter answer.",
        ),
        (
            {"flags": HealthFlags(mid_layer_anomaly=True)},
            "Compare the corevital.layers event with that of a healthy run of the same model.",
        ),
        (
            {"early_warning": EarlyWarning(0.6, ("margin_collapsed",))},
            "Check what the text says from step 2 on, where it is least certain.",
        ),
        (
            {"blame": (LayerBlame(3, 0.3, ("x",)), LayerBlame(8, 0.5, ("x",)))},
            "Compare layer 8 with that of a healthy run of the same model.",
        ),
    ],
)
def test_what_to_do_follows_from_what_was_found(parts: dict[str, Any], advice: str) -> None:
    assert sentences(told(**parts))[-1] == advice


def test_a_record_that_contradicts_itself_comes_before_everything() -> None:
    broken = Violation("negative_entropy", 3, None, {"entropy": -1.0}, 1)

    text = told(consistency=(broken,), flags=HealthFlags(nan_or_inf=True))

    assert sentences(text)[-1] == (
        "Trust none of this before the record is right: negative_entropy at step 3: entropy -1."
    )
    assert "no flag" not in told(consistency=(broken,))


# Limits


def everything_wrong() -> Assessment:
    long = "very long words " * 100
    return Assessment(
        flags=HealthFlags(True, True, True, True, 0.8, 4),
        signals=tuple(CompoundSignal(name, 1.0, long) for name in SIGNAL_SEVERITY),
        early_warning=EarlyWarning(0.9, tuple(SEVERITY)),
        blame=tuple(LayerBlame(layer, 0.5, (long, long)) for layer in range(90)),
        risk=Risk(
            1.0, RiskLevel.CRITICAL, RiskSource.UNCALIBRATED, 1.0, (RiskFactor("nan_or_inf", 1.0),)
        ),
    )


def test_when_everything_is_wrong_it_is_still_short() -> None:
    text = narrative(observed(), everything_wrong(), ["🧑🏽" * 10_000] * 4)

    assert len(text.encode()) < 1024
    assert 2 <= len(sentences(text)) <= 6
    assert sentences(text)[-1].startswith("Check the weights")


def test_what_matters_least_is_left_out_first() -> None:
    text = narrative(observed(), everything_wrong(), ["🧑🏽" * 10_000] * 4)

    assert "skips the middle of the prompt" in text
    assert "Flags: " in text
    assert "stands out" not in text
