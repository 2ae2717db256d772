"""For which model a calibration was made."""

from __future__ import annotations

from typing import Final

from pydantic import BaseModel, ConfigDict

from corevital.record import ModelDescription

_STRUCTURE: Final = {
    "family": "family",
    "architecture": "architecture",
    "layers": "number of layers",
    "hidden_size": "hidden size",
    "vocabulary_size": "vocabulary size",
}


class ModelIdentity(BaseModel):
    """A model as far as it can be told cheaply: its name and its structure, not its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    family: str
    architecture: str
    layers: int | None = None
    hidden_size: int | None = None
    vocabulary_size: int | None = None

    @classmethod
    def of(cls, model: ModelDescription) -> ModelIdentity:
        """The identity of a described model."""
        structure = {field: getattr(model, field) for field in _STRUCTURE}
        return cls(name=model.name, **structure)

    def mismatch(self, model: ModelDescription) -> str | None:
        """What differs, in one sentence; ``None`` for the same model.

        Of names only the last part of the path counts: a local folder of a model of the Hub is the
        same model.
        """
        differences = [
            f"its {words} is {actual}, not {expected}"
            for field, words in _STRUCTURE.items()
            if (actual := getattr(model, field)) != (expected := getattr(self, field))
        ]
        if _last_part(model.name) != _last_part(self.name):
            differences.insert(0, f"its name is {model.name}, not {self.name}")
        if not differences:
            return None
        return f"made for {self.name}, and this is another model: {', '.join(differences)}"

    def matches(self, model: ModelDescription) -> bool:
        """Whether ``model`` is the one that the calibration was made for."""
        return self.mismatch(model) is None


def _last_part(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]
