"""Shrinks any configuration of transformers: the same kinds of layers, at toy size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from transformers import PretrainedConfig

LAYERS: Final = 2
HEADS: Final = 4
KEY_VALUE_HEADS: Final = 2
HEAD: Final = 8
HIDDEN: Final = HEADS * HEAD
INNER: Final = 2 * HIDDEN
VOCABULARY: Final = 99
POSITIONS: Final = 128
EXPERTS: Final = 4
SPREAD: Final = 0.2

TOKENS: Final = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2}

# The first pattern that matches the whole name of a field with a whole number gives its toy size.
# A number that is smaller already stays.
_SIZES: Final[Sequence[tuple[str, int]]] = (
    (r".*(key_value|kv_n|kv)_heads", KEY_VALUE_HEADS),
    (r".*(num|attention|n|mamba)_heads?|encoder_heads|index_n_heads", HEADS),
    (r".*vocab_size.*", VOCABULARY),
    (r"qk_head_dim", 2 * HEAD),
    (r".*(head_dim|_rank|laurel_rank|hidden_size_per_layer_input)|hc_lowrank", HEAD),
    (r"d_rel|rotary_dim|dim_head|d_kv|kv_channels|mamba_d_head|embed_dim_per_head", HEAD),
    (r".*(d_state|state_size|hidden_size_per_head)", HEAD),
    (r"mamba_d_ssm|expand_size", 2 * HIDDEN),
    (r".*(intermediate|ffn|ff|ffn_hidden|mlp)_(size|dim).*|d_ff|dff|dim_ff|n_inner", INNER),
    (r".*hidden_size.*|d_model|n_embd|.*embedding_size|embed_dim|emb_dim|hidden_dim", HIDDEN),
    (
        r".*(position_embeddings|_positions|sequence_length|max_pos_emb)|n_ctx|max_seq_len",
        POSITIONS,
    ),
    (r".*(?<!dense)(?<!shared)_layers|n_layers?|depth|num_blocks", LAYERS),
    (r".*(num|local|routed|moe_num)_experts|n_experts", EXPERTS),
    (r".*experts_per_tok(en)?|moe_top_?k|moe_k", 2),
    (r"n_group|topk_group|num_expert_group", 1),
    (r".*sliding_window|.*window_size|sliding_window_size|local_attention.*|.*_window", HEAD),
    (r".*chunk_size", HEAD),
    (r"num_mel_bins", 16),
)

_LAYER_COUNTS: Final = ("num_hidden_layers", "num_layers", "n_layers", "n_layer")

# What some classes have no default for.
_MISSING: Final = {"head_dim": HEAD, "n_routed_experts": EXPERTS, "num_experts_per_tok": 2}


def shrunk(config: PretrainedConfig) -> dict[str, Any]:
    """Keyword arguments that make a small configuration of the same class."""
    fields = {name: value for name, value in vars(config).items() if not name.startswith("_")}
    layers = _layers_to_keep(config, fields)
    small: dict[str, Any] = {}
    if config.is_encoder_decoder:
        small["decoder_start_token_id"] = TOKENS["bos_token_id"]
    for name, value in fields.items():
        if isinstance(value, PretrainedConfig):
            # All of its fields, because the whole may set other defaults than the part has.
            full = value.to_dict()
            full.pop("per_layer_config", None)
            small[name] = full | shrunk(value)
        elif name in TOKENS:
            small[name] = TOKENS[name]
        elif name in ("initializer_range", "init_std"):
            small[name] = SPREAD
        elif name == "is_decoder":
            small[name] = True
        elif name in _MISSING and value is None:
            small[name] = _MISSING[name]
        elif layers and isinstance(value, list | tuple) and len(value) == config.num_hidden_layers:
            small[name] = [_toy(name, value[layer], fields) for layer in layers]
        elif layers and name in _LAYER_COUNTS:
            small[name] = len(layers)
        else:
            toy = _toy(name, value, fields)
            if toy != value:
                small[name] = toy
    return small


def _layers_to_keep(config: PretrainedConfig, fields: Mapping[str, Any]) -> list[int]:
    """The first layer of each kind, where lists say of what kind the layers are."""
    count = getattr(config, "num_hidden_layers", None)
    kinds = [
        value
        for value in fields.values()
        if isinstance(value, list | tuple) and len(value) == count and isinstance(value[0], str)
    ]
    if not kinds or not isinstance(count, int):
        return []
    first: dict[tuple[str, ...], int] = {}
    for layer, kind in enumerate(zip(*kinds, strict=True)):
        first.setdefault(kind, layer)
    kept = sorted(first.values())
    kept += [layer for layer in range(count) if layer not in kept][: max(0, LAYERS - len(kept))]
    return sorted(kept)


def _toy(name: str, value: Any, fields: Mapping[str, Any]) -> Any:
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    for pattern, size in _SIZES:
        if re.fullmatch(pattern, name):
            # Where every head has keys of its own, it keeps them.
            all_heads = fields.get(name.replace("key_value", "attention"))
            return min(value, HEADS if name.endswith("_heads") and value == all_heads else size)
    return value
