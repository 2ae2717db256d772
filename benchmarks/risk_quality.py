"""How well risk scores tell right from wrong answers to short questions.

    python -m benchmarks.risk_quality [--model PATH] [--per-kind 180] [--repeats 5]
        [--runs FILE.jsonl] [--write]

Questions of five kinds (`benchmarks.short_answers`) are put to the model under full capture, and
the replies are graded by code. Compared are the calibrated risk, fitted to other prompts or to
other kinds of prompts, every single estimator, the published heuristic and the default score.
``--runs`` keeps the runs, so that only the analysis is repeated; ``--write`` replaces the committed
results.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from benchmarks.labelled_runs import LabelledRun, as_labels, conditions, labelled_runs
from benchmarks.markdown import table
from benchmarks.resampling import Interval, auroc_interval, difference_interval, perfect_ece
from benchmarks.short_answers import PER_KIND, questions
from corevital.calibration.diagram import png, reliability_figure
from corevital.calibration.evaluate import HEURISTIC, UNCALIBRATED, HeldOut, held_out
from corevital.calibration.fit_risk import FOLDS, LabelledRuns, TooFewLabels
from corevital.calibration.quality import BINS, Failures, Scores, auroc, brier, ece

MODEL_NAME: Final = "SmolLM2-135M-Instruct"
RESULTS: Final = Path(__file__).parent / "results"
POOLED: Final = "pooled"
PROBABILITIES: Final = (HEURISTIC, UNCALIBRATED)
"""Scores in [0, 1] that are no probabilities, but may be taken for some."""


@dataclass(frozen=True, slots=True)
class Compared:
    """Scores of the same runs: held out by prompt, and by kind of prompt.

    ``repeated`` are those by prompt with other assignments of prompts to folds.
    """

    kinds: NDArray[np.str_]
    failed: Failures
    by_prompt: HeldOut
    by_kind: HeldOut
    repeated: tuple[HeldOut, ...] = ()

    @property
    def names(self) -> list[str]:
        """The kinds, in order."""
        return list(dict.fromkeys(self.kinds.tolist()))

    def of(self, name: str) -> NDArray[np.bool_]:
        """Which runs are of one kind; all of them are `POOLED`."""
        chosen: NDArray[np.bool_] = (self.kinds == name) | (name == POOLED)
        return chosen

    def auroc(self, scores: Scores, name: str) -> float:
        """The AUROC of ``scores`` on one kind."""
        return auroc(scores[self.of(name)], self.failed[self.of(name)])

    def best_single(self, scores: HeldOut, among: NDArray[np.bool_]) -> str:
        """The single estimator that ranks the runs ``among`` best."""
        single = [name for name in scores.others if name not in PROBABILITIES]
        return max(single, key=lambda name: auroc(scores.others[name][among], self.failed[among]))


def compare(runs: Sequence[LabelledRun], repeats: int) -> Compared:
    """Fit and score, without each fold of prompts (``repeats`` times more) and without each kind.

    Raises:
        TooFewLabels: there is nothing to learn.
    """
    labels = as_labels(runs)
    kinds = np.array([run.kind for run in runs])
    others = {
        HEURISTIC: np.array([run.heuristic for run in runs]),
        UNCALIBRATED: np.array([run.default for run in runs]),
    }
    without = [
        (np.flatnonzero(kinds != kind), np.flatnonzero(kinds == kind)) for kind in np.unique(kinds)
    ]
    return Compared(
        kinds,
        labels.failed,
        by_prompt=held_out(labels, others),
        by_kind=held_out(labels, others, without),
        repeated=tuple(_shuffled(labels, seed) for seed in range(repeats)),
    )


def _shuffled(labels: LabelledRuns, seed: int) -> HeldOut:
    """Held out by prompt; in another order, other prompts share a fold."""
    order = np.random.default_rng(seed).permutation(len(labels))
    back = np.argsort(order)
    scores = held_out(labels[order], {})
    return HeldOut({name: values[back] for name, values in scores.calibrated.items()}, {})


def report(compared: Compared) -> Iterator[str]:
    """The results as Markdown, part by part."""
    yield "## Labels\n"
    yield _labels(compared)
    yield (
        f"\n## Held-out prompts\n\nGrouped cross-validation by prompt, {FOLDS} folds. AUROC, "
        "pooled with its 95 % bootstrap interval, and of each kind by itself.\n"
    )
    yield _scores(compared)
    yield (
        "\nThe calibrated score from full capture, kind by kind, against the single estimator that "
        "ranks that very kind best, chosen afterwards with the labels of the test runs. Nobody "
        "could choose it beforehand: it is a bound, not a competitor.\n"
    )
    yield _margins(compared)
    yield (
        "\n## Held-out kinds\n\nFitted to four kinds and tested on the fifth. Beside it the single "
        "estimator that ranks best on the same four kinds, and again the one chosen afterwards.\n"
    )
    yield _held_out_kinds(compared)
    yield "\n## Calibration\n"
    yield _calibration(compared)
    if compared.repeated:
        yield (
            f"\nWhich prompts share a fold is chance. {len(compared.repeated)} other assignments "
            "give, on average and from the least to the most:\n"
        )
        yield _repeated(compared)


def _labels(compared: Compared) -> str:
    rows = []
    for name in (*compared.names, POOLED):
        failed = compared.failed[compared.of(name)]
        rows.append([name, str(len(failed)), str(int(failed.sum())), f"{failed.mean():.0%}"])
    return table(["kind", "questions", "failed", "share"], rows)


def _scores(compared: Compared) -> str:
    scores = compared.by_prompt
    every = [
        *((f"calibrated: {name}", values, True) for name, values in scores.calibrated.items()),
        *((name, values, name in PROBABILITIES) for name, values in scores.others.items()),
    ]
    rows = []
    for name, values, is_probability in every:
        interval = auroc_interval(values, compared.failed)
        rows.append(
            [
                name,
                f"{auroc(values, compared.failed):.3f}",
                _range(interval),
                *(f"{compared.auroc(values, kind):.3f}" for kind in compared.names),
                f"{ece(values, compared.failed):.3f}" if is_probability else "",
                f"{brier(values, compared.failed):.3f}" if is_probability else "",
            ]
        )
    return table(["score", POOLED, "95 %", *compared.names, "ECE", "Brier"], rows)


def _margins(compared: Compared) -> str:
    scores, rows = compared.by_prompt, []
    for name in (*compared.names, POOLED):
        chosen = compared.of(name)
        failed, calibrated = compared.failed[chosen], scores.fullest[chosen]
        best = compared.best_single(scores, chosen)
        other = scores.others[best][chosen]
        ahead = auroc(calibrated, failed) - auroc(other, failed)
        rows.append(
            [
                name,
                f"{auroc(calibrated, failed):.3f}",
                _range(auroc_interval(calibrated, failed)),
                f"{best} {auroc(other, failed):.3f}",
                f"{ahead:+.3f}",
                _range(difference_interval(calibrated, other, failed), "+.3f"),
            ]
        )
    return table(
        ["kind", "calibrated", "95 %", "best single, afterwards", "difference", "95 %"], rows
    )


def _held_out_kinds(compared: Compared) -> str:
    scores, rows, found = compared.by_kind, [], []
    for name in compared.names:
        tested = compared.of(name)
        failed, calibrated = compared.failed[tested], scores.fullest[tested]
        chosen, best = compared.best_single(scores, ~tested), compared.best_single(scores, tested)
        singles = {each: auroc(scores.others[each][tested], failed) for each in (chosen, best)}
        found.append((auroc(calibrated, failed), singles[chosen], singles[best]))
        rows.append(
            [
                name,
                f"{found[-1][0]:.3f}",
                _range(auroc_interval(calibrated, failed)),
                f"{chosen} {singles[chosen]:.3f}",
                f"{best} {singles[best]:.3f}",
                f"{ece(calibrated, failed):.3f}",
            ]
        )
    means = np.mean(found, axis=0).tolist()
    rows.append(["mean", f"{means[0]:.3f}", "", f"{means[1]:.3f}", f"{means[2]:.3f}", ""])
    return table(
        [
            *("kind held out", "calibrated", "95 %"),
            *("best single on the other kinds", "best single, afterwards", "ECE"),
        ],
        rows,
    )


def _calibration(compared: Compared) -> str:
    said = compared.by_prompt.fullest
    mean, interval = perfect_ece(said)
    return (
        f"The ECE of {len(said)} runs in {BINS} bins is {ece(said, compared.failed):.3f} for the "
        f"calibrated score from full capture on held-out prompts. A score that told each run's "
        f"true chance would show {mean:.3f} on average (95 %: {_range(interval)}), because so few "
        f"runs scatter. The smallest score of a run is {said.min():.4f}, the largest "
        f"{said.max():.4f}."
    )


def _repeated(compared: Compared) -> str:
    rows = []
    for name in compared.by_prompt.calibrated:
        row = [f"calibrated: {name}"]
        for measure in (auroc, ece, brier):
            found = [measure(each.calibrated[name], compared.failed) for each in compared.repeated]
            row += [f"{np.mean(found):.3f}", _range(Interval(min(found), max(found)))]
        rows.append(row)
    return table(["score", "AUROC", "range", "ECE", "range", "Brier", "range"], rows)


def _range(interval: Interval, form: str = ".3f") -> str:
    return f"{interval.low:{form}} to {interval.high:{form}}"


def write(
    runs: Sequence[LabelledRun], made: dict[str, object], results: str, diagram: bytes
) -> None:
    """Replace the committed results, labels and reliability diagram."""
    versions = {**made, **{name: version(name) for name in ("numpy", "scikit-learn")}}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "risk_quality.md").write_text(
        "# How well risk scores tell right from wrong answers\n\n"
        f"Written by `python -m benchmarks.risk_quality --write` on {datetime.now(UTC):%Y-%m-%d}: "
        f"{', '.join(f'{name} {value}' for name, value in versions.items())}. The labels are in "
        f"[risk_labels.jsonl](risk_labels.jsonl).\n\n{results}\n",
        encoding="utf-8",
    )
    (RESULTS / "reliability.png").write_bytes(diagram)
    names = ("kind", "prompt", "answers", "reply", "failed")
    lines = [
        json.dumps({name: getattr(run, name) for name in names}, ensure_ascii=False) for run in runs
    ]
    (RESULTS / "risk_labels.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Print the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="default: SmolLM2-135M-Instruct, fetched once")
    parser.add_argument("--per-kind", type=int, default=PER_KIND, help="questions of each kind")
    parser.add_argument("--runs", type=Path, help="keep the runs here, and use those that it has")
    parser.add_argument("--repeats", type=int, default=5, help="further assignments to folds")
    parser.add_argument("--write", action="store_true", help=f"write to {RESULTS.name}/")
    options = parser.parse_args()
    asked = questions(options.per_kind)
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("Generating", total=len(asked))
        runs = labelled_runs(asked, options.model, options.runs, lambda: progress.advance(task))
    try:
        compared = compare(runs, options.repeats)
    except TooFewLabels as error:
        sys.exit(f"{error}; --per-kind asks for more")
    results = "\n".join(report(compared))
    print(results)
    if options.write:
        by_prompt, failed = compared.by_prompt, np.array([run.failed for run in runs])
        name = Path(options.model).name if options.model else MODEL_NAME
        heuristic = by_prompt.others[HEURISTIC]
        figure = reliability_figure(name, failed, by_prompt.fullest, heuristic)
        write(runs, conditions(options.model), results, png(figure))


if __name__ == "__main__":
    main()
