"""Tiny decoder-only, state-space and encoder-decoder models with random weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    GenerationMixin,
    PreTrainedModel,
)

if TYPE_CHECKING:

    class GenerativeModel(PreTrainedModel, GenerationMixin):
        """A model that generates; the library has no such type common to its releases."""

        def generate(self, *args: Any, **kwargs: Any) -> Any: ...

else:
    GenerativeModel = PreTrainedModel

T5_HAS_ITS_OWN_ATTENTION = transformers.__version__.startswith("4.")
VOCABULARY = 128
LAYERS = 4
HEADS = 4
KEY_VALUE_HEADS = 2
HIDDEN = 32
HEAD = HIDDEN // HEADS
WINDOW = 8

# Wide enough that attention weights and token probabilities are far from uniform: with the usual
# 0.02 every distribution of a model this small is flat, and a wrong statistic would go unseen.
SPREAD = 0.2

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}

_COMMON = {
    **_TOKENS,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KEY_VALUE_HEADS,
    "max_position_embeddings": 1024,
    "initializer_range": SPREAD,
}

# The older families name the same things in their own way.
_GPT = {
    **_TOKENS,
    "n_embd": HIDDEN,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 1024,
    "initializer_range": SPREAD,
}

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    # Decoder-only, whose attention functions come from the registry.
    "llama": _COMMON,
    "gpt2": _GPT,
    "qwen2": _COMMON,
    "qwen3": {**_COMMON, "head_dim": HEAD},
    "mistral": {**_COMMON, "sliding_window": WINDOW},
    "gemma2": {
        **_COMMON,
        "head_dim": HEAD,
        "query_pre_attn_scalar": HEAD,
        "sliding_window": WINDOW,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 10.0,
    },
    "phi3": _COMMON,
    "mixtral": {**_COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "gpt_oss": {
        **_COMMON,
        "head_dim": HEAD,
        "sliding_window": WINDOW,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        # What its default YaRN scaling extends its default original length to.
        "max_position_embeddings": 131072,
    },
    # Decoder-only, whose attention is written into the model.
    "bloom": {
        **_TOKENS,
        "hidden_size": HIDDEN,
        "n_layer": LAYERS,
        "n_head": HEADS,
        "initializer_range": SPREAD,
    },
    "falcon": {**_COMMON, "num_kv_heads": KEY_VALUE_HEADS, "new_decoder_architecture": True},
    "gptj": {**_GPT, "rotary_dim": HEAD // 2},
    # State space: no attention.
    "mamba": {
        **_TOKENS,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "state_size": 8,
        "initializer_range": SPREAD,
    },
    # Encoder-decoder.
    "t5": {
        **_TOKENS,
        "d_model": HIDDEN,
        "d_kv": HEAD,
        "d_ff": 2 * HIDDEN,
        "num_layers": LAYERS,
        "num_heads": HEADS,
        "initializer_factor": 1.5,
        "decoder_start_token_id": 0,
    },
    "bart": {
        **_TOKENS,
        "d_model": HIDDEN,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * HIDDEN,
        "decoder_ffn_dim": 2 * HIDDEN,
        "max_position_embeddings": 1024,
        "init_std": SPREAD,
        "decoder_start_token_id": 2,
        "forced_eos_token_id": None,
    },
    "marian": {
        **_TOKENS,
        "d_model": HIDDEN,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS - 1,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * HIDDEN,
        "decoder_ffn_dim": 2 * HIDDEN,
        "max_position_embeddings": 1024,
        "init_std": SPREAD,
        "decoder_start_token_id": 0,
        "forced_eos_token_id": None,
    },
    # Of speech; its prompt is a spectrogram.
    "whisper": {
        **_TOKENS,
        "d_model": HIDDEN,
        "encoder_layers": LAYERS,
        "decoder_layers": LAYERS,
        "encoder_attention_heads": HEADS,
        "decoder_attention_heads": HEADS,
        "encoder_ffn_dim": 2 * HIDDEN,
        "decoder_ffn_dim": 2 * HIDDEN,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": 64,
        "init_std": SPREAD,
        "decoder_start_token_id": 2,
        "begin_suppress_tokens": None,
        "suppress_tokens": None,
    },
}


def tiny_model(family: str, *, seed: int = 0, **config_overrides: Any) -> GenerativeModel:
    """Build a model of one of the ``FAMILIES`` in evaluation mode, equal for equal arguments.

    ``config_overrides`` replace or add configuration values, ``attn_implementation`` among them.
    The global random state stays as it was.
    """
    config = AutoConfig.for_model(family, **{**FAMILIES[family], **config_overrides})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if family == "whisper":
            model = AutoModelForSpeechSeq2Seq.from_config(config)
        elif config.is_encoder_decoder:
            model = AutoModelForSeq2SeqLM.from_config(config)
        else:
            model = AutoModelForCausalLM.from_config(config)
    return cast(GenerativeModel, model.eval())


def tiny_prompt(batch: int = 1, tokens: int = 12, *, seed: int = 0) -> torch.Tensor:
    """Return random token ids without special tokens, ``[batch, tokens]``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)


def tiny_features(batch: int = 1, *, seed: int = 0) -> torch.Tensor:
    """Return random audio features for the tiny "whisper", ``[batch, 8, 40]``."""
    return torch.randn(batch, 8, 40, generator=torch.Generator().manual_seed(seed))


def padded_prompts(padding: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return tiny prompts with so many positions of padding on the left, and their mask."""
    prompts = tiny_prompt(batch=len(padding), seed=2)
    mask = torch.ones_like(prompts)
    for row, positions in enumerate(padding):
        prompts[row, :positions] = 0
        mask[row, :positions] = 0
    return {"input_ids": prompts, "attention_mask": mask}
