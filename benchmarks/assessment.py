"""How long the assessment of a long generation takes, and which part of it how much.

    python -m benchmarks.assessment [--steps 1000] [--layers 32] [--heads 32] [--repeats 50]

The record is random but consistent, with everything observed. It is scored by a risk calibration of
the usual size, fitted to made-up runs. Printed are medians in milliseconds; the parts are measured
one by one, so their sum differs a little from the whole.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
from rich.console import Console
from rich.table import Table

from corevital.assess.assessment import assess
from corevital.assess.blame import layer_blame
from corevital.assess.calibration import Calibration
from corevital.assess.consistency import consistency
from corevital.assess.early_warning import early_warning
from corevital.assess.fingerprint import fingerprint
from corevital.assess.flags import health_flags
from corevital.assess.heuristic_risk import heuristic_risk
from corevital.assess.loops import find_loops
from corevital.assess.narrative import narrative
from corevital.assess.profile import DEFAULT_PROFILE
from corevital.assess.signals import compound_signals
from corevital.assess.uncertainty import uncertainty
from corevital.calibration.fit_risk import LabelledRuns, fit_scorers
from corevital.calibration.identity import ModelIdentity
from corevital.calibration.risk import Evaluation, RiskCalibration
from corevital.calibration.schema import Capture, Conditions
from corevital.calibration.scoring import Observation, RiskModel
from corevital.record import (
    LAGS,
    AttentionColumns,
    Captured,
    CaptureMode,
    CaptureReport,
    Floats,
    GenerationRecord,
    HiddenColumns,
    LogitColumns,
    ModelDescription,
    PreviousTokenWeight,
    PromptColumns,
)

HIDDEN_SIZE = 4096
VOCABULARY = 32_000
PROMPT_TOKENS = 512
LABELLED_RUNS = 800


def random_record(steps: int, layers: int, heads: int) -> GenerationRecord:
    """A generation in which everything was observed at every step and layer."""
    generator = np.random.default_rng(0)

    def column(low: float, high: float, *shape: int) -> Floats:
        return generator.uniform(low, high, shape).astype(np.float32)

    over_layers = (steps, layers)
    mean, std = column(-0.1, 0.1, *over_layers), column(0.5, 2.0, *over_layers)
    middle = np.arange(layers // 3, 2 * layers // 3)
    seen = Captured(True)
    return GenerationRecord(
        model=ModelDescription("random", "llama", "Random", layers, HIDDEN_SIZE, VOCABULARY),
        capture=CaptureReport(CaptureMode.FULL, seen, seen, seen, seen),
        prompt_tokens=PROMPT_TOKENS,
        token_ids=generator.integers(0, VOCABULARY, steps),
        step_time_ns=np.arange(steps),
        start_time_ns=0,
        end_time_ns=steps,
        logits=LogitColumns(
            entropy=column(1.0, 6.0, steps),
            surprisal=column(1.0, 6.0, steps),
            margin=column(0.0, 0.5, steps),
            top_k_mass=column(0.6, 1.0, steps),
        ),
        hidden=HiddenColumns(
            layers=np.arange(layers),
            mean=mean,
            std=std,
            l2_norm=np.sqrt(HIDDEN_SIZE * mean**2 + (HIDDEN_SIZE - 1) * std**2),
            max_abs=5 * std,
            clip_fraction=np.zeros(over_layers, dtype=np.float32),
            non_finite=np.zeros(over_layers, dtype=bool),
            last_layer_cosine=column(-0.5, 0.9, steps),
            lag_cosine=column(-0.5, 0.9, steps, LAGS).astype(np.float16),
        ),
        attention=AttentionColumns(
            layers=np.arange(layers),
            heads=np.full(layers, heads),
            entropy_mean=column(2.0, 4.0, *over_layers),
            entropy_min=column(0.0, 2.0, *over_layers),
            entropy_max=column(4.0, 9.0, *over_layers),
            normalized_entropy_mean=column(0.0, 1.0, *over_layers),
            concentration_max=column(0.92, 1.0, *over_layers),
            concentration_min=column(0.0, 0.5, *over_layers),
            collapsed_heads=generator.integers(0, 2, over_layers),
            focused_heads=generator.integers(1, 3, over_layers),
            non_finite=np.zeros(over_layers, dtype=bool),
            previous_token_weight=PreviousTokenWeight(
                middle, column(0.0, 1.0, steps, len(middle), heads)
            ),
        ),
        prompt=PromptColumns(
            surprisal=column(0.0, 8.0, PROMPT_TOKENS - 1),
            layer_transformation=column(0.0, 1.0, layers - 1),
            basin=column(0.1, 2.0, layers, heads),
        ),
        finish_reason="length",
    )


def random_risk(record: GenerationRecord) -> RiskModel:
    """A risk model fitted to runs that scatter around ``record`` and failed at random."""
    generator = np.random.default_rng(0)
    usual = Observation.of(record)
    observations = tuple(
        Observation(
            {name: value + generator.normal() for name, value in usual.features.items()},
            {name: value * generator.lognormal() for name, value in usual.estimators.items()},
        )
        for _ in range(LABELLED_RUNS)
    )
    failed = generator.random(LABELLED_RUNS) < 0.5
    runs = LabelledRuns(observations, failed, np.arange(LABELLED_RUNS))
    calibration = RiskCalibration(
        model=ModelIdentity.of(record.model),
        conditions=Conditions(
            prompts="", chat_template=False, max_new_tokens=record.steps, device="", dtype=""
        ),
        capture=Capture(mode=record.capture.mode, top_k=10),
        created="",
        created_with={},
        runs=LABELLED_RUNS,
        failures=int(failed.sum()),
        scorers=fit_scorers(runs),
        evaluation=Evaluation(folds=1, calibrated={}, others={}),
    )
    return RiskModel(calibration, "random")


def median_milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Median time of ``work``, in milliseconds, after a first call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times) * 1e3


def parts(record: GenerationRecord, model: RiskModel) -> dict[str, Callable[[], object]]:
    """Each part of the assessment, as `assess` calls it."""
    profile = DEFAULT_PROFILE
    flags, signals = health_flags(record, profile), compound_signals(record)
    risk = heuristic_risk(record, flags, signals)
    return {
        "health flags": lambda: health_flags(record, profile),
        "compound signals": lambda: compound_signals(record),
        "early warning": lambda: early_warning(record, flags),
        "layer blame": lambda: layer_blame(record),
        "heuristic risk": lambda: heuristic_risk(record, flags, signals),
        "calibrated risk": lambda: model.probability(record),
        "uncertainty": lambda: uncertainty(record),
        "loops": lambda: find_loops(record),
        "fingerprint": lambda: fingerprint(record, flags, risk.score),
        "consistency": lambda: consistency(record),
    }


def main() -> None:
    """Print one row for each part, and the whole."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    record = random_record(options.steps, options.layers, options.heads)
    model = random_risk(record)
    calibration = Calibration(risk=model)
    assessment = assess(record, DEFAULT_PROFILE, calibration)
    if assessment.consistency:
        raise SystemExit(f"the record is not consistent: {assessment.consistency[0]}")
    whole = median_milliseconds(
        lambda: assess(record, DEFAULT_PROFILE, calibration), options.repeats
    )
    table = Table(
        title=f"Assessment of {options.steps} steps, {options.layers} layers, {options.heads} heads"
    )
    table.add_column("part")
    table.add_column("ms", justify="right")
    table.add_column("share", justify="right")
    for name, work in parts(record, model).items():
        took = median_milliseconds(work, options.repeats)
        table.add_row(name, f"{took:.2f}", f"{took / whole:.0%}")
    table.add_section()
    table.add_row("assess, the whole", f"{whole:.2f}", "")
    told = median_milliseconds(lambda: narrative(record, assessment), options.repeats)
    table.add_row("narrative, besides", f"{told:.2f}", "")
    Console().print(table)


if __name__ == "__main__":
    main()
