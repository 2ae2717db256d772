"""Reads calibration files, and finds those that fit a model."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from corevital.assess.calibration import Calibration
from corevital.calibration import baseline, risk
from corevital.calibration.baseline import Baseline
from corevital.calibration.divergence import Reference
from corevital.calibration.identity import ModelIdentity
from corevital.calibration.risk import RiskCalibration
from corevital.calibration.scoring import RiskModel
from corevital.record import ModelDescription

_logger: Final = logging.getLogger(__name__)

Content = Baseline | RiskCalibration
"""What a file of any kind holds; a further kind joins here and in ``_KINDS``."""

_KINDS: Final[dict[str, tuple[type[BaseModel], int]]] = {
    baseline.KIND: (Baseline, baseline.VERSION),
    risk.KIND: (RiskCalibration, risk.VERSION),
}
"""By the file's ``kind``: its schema, and the newest version of it that is understood."""

_ID_DIGITS: Final = 12


class CalibrationError(ValueError):
    """A calibration file cannot be used; ``path`` is the file's."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(problem)
        self.path = path


@dataclass(frozen=True, slots=True)
class CalibrationFile:
    """A file that was read; ``id`` changes whenever its content does."""

    path: Path
    id: str
    content: Content

    @property
    def kind(self) -> str:
        """What the file holds."""
        return self.content.kind

    @property
    def model(self) -> ModelIdentity:
        """The model it was made for."""
        return self.content.model


def read_calibration(path: Path) -> CalibrationFile:
    """Read and check a calibration file.

    Raises:
        CalibrationError: it cannot be read, or is no such file; the message says what is wrong.
    """
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
    except OSError as error:
        raise CalibrationError(path, error.strerror or str(error)) from error
    except ValueError as error:
        raise CalibrationError(path, f"it is not JSON: {error}") from error
    schema, newest = _schema(path, value)
    if isinstance(version := value.get("version"), int) and version > newest:
        raise CalibrationError(
            path, f"its version {version} is newer than {newest}, the newest that is read here"
        )
    try:
        content = schema.model_validate(value)
    except ValidationError as error:
        raise CalibrationError(path, _problem(error)) from error
    assert isinstance(content, Content)
    digest = hashlib.sha256(raw).hexdigest()[:_ID_DIGITS]
    return CalibrationFile(path, f"{content.model.name}@{digest}", content)


def _schema(path: Path, value: Any) -> tuple[type[BaseModel], int]:
    accepted = ", ".join(_KINDS)
    if not isinstance(value, dict) or "kind" not in value:
        raise CalibrationError(path, f"it has no kind, which must be one of: {accepted}")
    kind = value["kind"]
    if not isinstance(kind, str) or kind not in _KINDS:
        raise CalibrationError(path, f"its kind {kind!r} is none of: {accepted}")
    return _KINDS[kind]


def _problem(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{where + ': ' if where else ''}{first['msg']}{more}"


class Calibrations:
    """All calibrations that were given, and which of them fit which model."""

    def __init__(self, files: Iterable[CalibrationFile] = ()) -> None:
        self._files = tuple(files)
        self._lock = threading.Lock()
        self._known: dict[ModelDescription, Calibration] = {}

    @classmethod
    def read(cls, paths: Iterable[Path]) -> Calibrations:
        """Read every file.

        Raises:
            CalibrationError: one cannot be used.
        """
        return cls([read_calibration(path) for path in paths])

    def check_top_k(self, top_k: int) -> None:
        """Check that the top-k mass is the one that risk was learned from.

        Raises:
            CalibrationError: a risk calibration was made with another ``top_k``.
        """
        for file in self._files:
            made_with = file.content.capture.top_k
            if isinstance(file.content, RiskCalibration) and made_with != top_k:
                raise CalibrationError(
                    file.path, f"it was made with top_k={made_with}, and here it is {top_k}"
                )

    def for_model(self, model: ModelDescription) -> Calibration:
        """The calibrations that fit ``model``; that some do not is logged, once for each model."""
        with self._lock:
            if model not in self._known:
                self._known[model] = found = self.matching(model)
                if found.refused is not None:
                    _logger.error("%s", found.refused)
            return self._known[model]

    def matching(self, model: ModelDescription) -> Calibration:
        """The first file of each kind that was made for ``model``."""
        chosen: dict[str, CalibrationFile] = {}
        for file in self._files:
            if file.kind not in chosen and file.model.matches(model):
                chosen[file.kind] = file
        refusals = list(self._refusals(model, chosen))
        usual, labelled = chosen.get(baseline.KIND), chosen.get(risk.KIND)
        return Calibration(
            baseline=Reference(usual.content, usual.id)
            if usual is not None and isinstance(usual.content, Baseline)
            else None,
            risk=RiskModel(labelled.content, labelled.id)
            if labelled is not None and isinstance(labelled.content, RiskCalibration)
            else None,
            refused="; ".join(refusals) or None,
        )

    def _refusals(
        self, model: ModelDescription, chosen: dict[str, CalibrationFile]
    ) -> Iterator[str]:
        for file in self._files:
            mismatch = file.model.mismatch(model)
            if mismatch is not None and file.kind not in chosen:
                # Of a path in a span or a log, the file's own name is enough.
                yield f"{file.kind} {file.path.name} is not applied: {mismatch}"
