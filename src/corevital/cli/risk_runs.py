"""Labelled runs, from what each prompt gave."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from corevital.calibration.evaluate import HEURISTIC, UNCALIBRATED
from corevital.calibration.features import LOGITS
from corevital.calibration.fit_risk import LabelledRuns, TooFewLabels, check_runs
from corevital.calibration.scoring import Observation, Values
from corevital.cli.errors import CommandError
from corevital.cli.labels import Label
from corevital.cli.prompt_file import LEFT_OUT, counted, left_out
from corevital.cli.prompt_runs import PromptResult
from corevital.cli.prompts import Prompt

if TYPE_CHECKING:
    # Its module imports transformers, which has to wait until the loading is announced.
    from corevital.telemetry.pipeline import Observed


@dataclass(frozen=True, slots=True)
class RiskRuns:
    """The runs that count, why others do not, and the scores that need no calibration.

    ``others`` are the published heuristic and the default score in [0, 1], ``[N]`` each.
    """

    labelled: LabelledRuns
    others: dict[str, Values]
    left_out: Counter[str]

    def __str__(self) -> str:
        """How many runs there are of each kind."""
        prompts, failed = len(set(self.labelled.prompts.tolist())), self.labelled.failed
        found = f"{len(failed)} runs of {prompts} prompts, {failed.sum()} of which failed"
        return f"{found}; left out: {counted(self.left_out)}" if self.left_out else found


def risk_summary(prompt: Prompt, observed: Observed, text: str) -> dict[str, Any]:
    """What is learned from a run, or why it is left out."""
    observation, assessment = Observation.of(observed.record), observed.assessment
    if assessment is None or LOGITS not in observation.groups:
        return {LEFT_OUT: "logits that are not finite or were not observed"}
    return {
        "text": text,
        "features": dict(observation.features),
        "estimators": dict(observation.estimators),
        HEURISTIC: assessment.risk.heuristic,
        UNCALIBRATED: assessment.risk.score,
    }


def risk_runs(results: Sequence[PromptResult], labels: Sequence[Label]) -> RiskRuns:
    """The runs of ``results``, graded by the ``labels`` in the same order.

    Runs of equal prompts belong together.

    Raises:
        CommandError: too few of either kind remain.
    """
    reasons = [left_out(result) for result in results]
    used = [
        (result.prompt, result.summary, label)
        for result, label, reason in zip(results, labels, reasons, strict=True)
        if reason is None
    ]
    numbers: dict[str, int] = {}
    contents = [json.dumps(prompt.content, sort_keys=True) for prompt, _, _ in used]
    labelled = LabelledRuns(
        tuple(Observation(summary["features"], summary["estimators"]) for _, summary, _ in used),
        np.array([label.failed(summary["text"]) for _, summary, label in used], dtype=bool),
        np.array([numbers.setdefault(each, len(numbers)) for each in contents], dtype=np.int64),
    )
    others = {
        name: np.array([summary[name] for _, summary, _ in used], dtype=np.float64)
        for name in (HEURISTIC, UNCALIBRATED)
    }
    runs = RiskRuns(labelled, others, Counter(reason for reason in reasons if reason is not None))
    try:
        check_runs(labelled)
    except TooFewLabels as error:
        raise CommandError(f"{error}; left out: {counted(runs.left_out) or 'none'}") from error
    return runs
