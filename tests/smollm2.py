"""SmolLM2-135M-Instruct as the tests use it."""

from __future__ import annotations

import copy
from itertools import chain
from typing import NamedTuple, cast

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BatchEncoding,
    PreTrainedTokenizerBase,
)

from scripts.smollm2 import safetensors_folder
from tests.models import GenerativeModel


class LoadedModel(NamedTuple):
    """A model and its tokenizer."""

    model: GenerativeModel
    tokenizer: PreTrainedTokenizerBase

    def chat(self, message: str) -> BatchEncoding:
        """Return the inputs of ``generate`` for one user message."""
        inputs = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": message}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        assert isinstance(inputs, BatchEncoding)
        return inputs


def load() -> LoadedModel:
    """Load the model, fetched and converted first if need be, with sdpa attention."""
    folder = safetensors_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # What a tokenizer read from GGUF says of padding differs between releases of transformers.
    tokenizer.pad_token_id = model.generation_config.pad_token_id
    tokenizer.padding_side = "left"
    return LoadedModel(cast(GenerativeModel, model), tokenizer)


def with_eager_attention(loaded: LoadedModel) -> LoadedModel:
    """Return a model of its own that shares the weights of ``loaded`` and computes eagerly."""
    tensors = chain(loaded.model.parameters(), loaded.model.buffers())
    model = copy.deepcopy(loaded.model, {id(tensor): tensor for tensor in tensors})
    model.set_attn_implementation("eager")
    return LoadedModel(model, loaded.tokenizer)
