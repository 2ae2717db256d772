"""The architectures of the installed transformers, and a tiny model of each."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import pytest
import torch
import transformers
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto

from tests.models import GenerativeModel
from tests.zoo.overrides import (
    CONFIGURATIONS,
    FEATURES,
    GENERATION,
    LEFT_OUT,
    MORE,
    PARTS,
    RELEASE,
)
from tests.zoo.sizes import VOCABULARY, shrunk

_MAPPINGS: Final = (
    modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    modeling_auto.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)
PROMPT_TOKENS: Final = 6
COMPLETE: Final = transformers.__version__.startswith(f"{RELEASE}.")
"""Whether the tables are for the installed release: all of the zoo can be built then."""
in_this_release: Final = pytest.mark.skipif(not COMPLETE, reason="of another release")


@dataclass(frozen=True, slots=True, order=True)
class Architecture:
    """A model type and one of the classes that generate text with its configuration."""

    model_type: str
    class_name: str

    def __str__(self) -> str:
        return f"{self.model_type}-{self.class_name}"

    def configuration(self) -> PretrainedConfig:
        """A toy-size configuration."""
        configuration_class = CONFIG_MAPPING[self.model_type]
        whole = configuration_class(**copy.deepcopy(PARTS.get(self.model_type, {})))
        own = _merged(
            CONFIGURATIONS.get(self.model_type, {}), CONFIGURATIONS.get(self.class_name, {})
        )
        return configuration_class(**_merged(shrunk(whole), own))

    def build(self) -> GenerativeModel:
        """A model with random weights, equal at every call; the global random state stays."""
        model_class = getattr(transformers, self.class_name)
        configuration = _own_part(self.configuration(), model_class)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = model_class(configuration).eval()
        settings = {**GENERATION.get(self.model_type, {}), **GENERATION.get(self.class_name, {})}
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        return cast(GenerativeModel, model)

    def build_or_skip(self) -> GenerativeModel:
        """``build``; the test is skipped where another release has no such model, or not so."""
        try:
            with warnings.catch_warnings():
                # What an old release imports may be deprecated by now.
                warnings.simplefilter("ignore", DeprecationWarning)
                return self.build()
        except Exception as error:
            if COMPLETE:
                raise
            reason = f"{type(error).__name__}: {error}"[:200]
            pytest.skip(f"cannot be built with this release of transformers: {reason}")

    def inputs(self, batch: int) -> dict[str, Tensor]:
        """What ``generate`` is given: token ids ``[batch, PROMPT_TOKENS]``, or features."""
        random = torch.Generator().manual_seed(0)
        features = FEATURES.get(self.class_name)
        if features is None:
            shape = (batch, PROMPT_TOKENS)
            return {"input_ids": torch.randint(3, VOCABULARY, shape, generator=random)}
        return {
            name: torch.randn(batch, *shape, generator=random) for name, shape in features.items()
        }


def architectures() -> list[Architecture]:
    """All that are mapped to causal, sequence-to-sequence and speech-to-text generation, and more.

    ``MORE`` are of the kind of others that are mapped.
    """
    mapped = [pair for mapping in _MAPPINGS for pair in mapping.items()]
    return sorted({Architecture(*pair) for pair in (*mapped, *MORE)})


def zoo() -> list[Architecture]:
    """Those of which a tiny model is to be had."""
    return [each for each in architectures() if each.model_type not in LEFT_OUT]


def _own_part(
    configuration: PretrainedConfig, model_class: type[PreTrainedModel]
) -> PretrainedConfig:
    """The part of a composite configuration that a text-only class is made from."""
    own = cast("type[PretrainedConfig]", model_class.config_class)
    if isinstance(configuration, own):
        return configuration
    parts = (part for part in vars(configuration).values() if isinstance(part, own))
    return next(parts, configuration)


def _merged(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(left)
    for name, value in right.items():
        inner = merged.get(name)
        if isinstance(value, Mapping) and isinstance(inner, Mapping):
            merged[name] = _merged(inner, value)
        else:
            merged[name] = value
    return merged
