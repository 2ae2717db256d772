"""Labels of prompts: how it is known whether a run failed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from corevital.calibration.grading import is_right, normalized
from corevital.cli.errors import USAGE, CommandError
from corevital.cli.prompts import Prompt


@dataclass(frozen=True, slots=True)
class Label:
    """Whether a run failed: said beforehand, or found out by the accepted answers."""

    said: bool | None = None
    answers: tuple[str, ...] = ()

    def failed(self, text: str) -> bool:
        """Whether the run that generated ``text`` failed."""
        return not is_right(text, self.answers) if self.said is None else self.said


def read_labels(path: str, prompts: Sequence[Prompt]) -> list[Label]:
    """The labels of the ``prompts`` that were read from the file at ``path``.

    Each has either ``answers``, a list of texts, or ``failed``, true or false.

    Raises:
        CommandError: one has not; the message names the line.
    """
    return [_label(f"{path}, line {prompt.line}", prompt.fields) for prompt in prompts]


def _label(where: str, fields: dict[str, Any]) -> Label:
    if len(fields.keys() & {"answers", "failed"}) != 1:
        raise CommandError(f'{where} has not either "answers" or "failed"', USAGE)
    if "failed" in fields:
        if not isinstance(fields["failed"], bool):
            raise CommandError(f'{where}: "failed" must be true or false', USAGE)
        return Label(said=fields["failed"])
    answers = fields["answers"]
    if (
        not isinstance(answers, list)
        or not answers
        or not all(isinstance(answer, str) and normalized(answer) for answer in answers)
    ):
        raise CommandError(f'{where}: "answers" must be a list of texts', USAGE)
    return Label(answers=tuple(answers))
