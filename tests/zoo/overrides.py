"""What single architectures need besides the sizes, and which cannot generate: tables only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tests.zoo.sizes import HEAD, HEADS, HIDDEN, INNER, VOCABULARY

_MAMBA: Final = {"mamba_n_heads": HEADS, "mamba_d_head": 2 * HIDDEN // HEADS}
_MAMBA_HEADS: Final = {"mamba_num_heads": HEADS, "mamba_head_dim": 2 * HEAD, "n_groups": 2}
RELEASE: Final = "5.23"
"""The release of transformers that the tables are for; others have other architectures."""

# The last layers use the keys and values of the first.
_SHARED_KEYS: Final = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "num_kv_shared_layers": 2,
}
_ZAMBA: Final = {
    "num_hidden_layers": 4,
    "layers_block_type": ["linear_attention", "hybrid"] * 2,
    "attention_hidden_size": 2 * HIDDEN,
    "attention_head_dim": 2 * HEAD,
}
_QWEN4: Final = {
    "indexer_n_heads": HEADS,
    "indexer_kv_heads": 1,
    "indexer_head_dim": HEAD,
    "indexer_budget": 8,
    "indexer_compress_ratio": 4,
}
_DOTS3: Final = {
    "swa_num_attention_heads": HEADS,
    "swa_num_key_value_heads": HEADS,
    "swa_q_lora_rank": HEAD,
    "swa_kv_lora_rank": HEAD,
    "swa_head_dim": 2 * HEAD,
    "swa_qk_nope_head_dim": HEAD,
    "swa_v_head_dim": HEAD,
}
_GRANITE_SPEECH: Final = {"encoder_config": {"context_size": HEAD, "max_pos_emb": 128}}
_VIBEVOICE: Final = {"num_filters": 2, "depths": (1,) * 7}
_CODEBOOKS: Final = {
    "text_encoder": {"is_decoder": False},
    "audio_encoder": {"codebook_dim": HIDDEN, "codebook_size": 128, "num_filters": 2},
    "decoder": {"num_codebooks": 4, "pad_token_id": VOCABULARY, "bos_token_id": VOCABULARY},
}
# Their own generate takes what is not set for None, not for the default.
_MUSICGEN: Final = {
    "guidance_scale": 1.0,
    "decoder_start_token_id": 2,
    "num_return_sequences": 1,
    "num_beams": 1,
}
_WAV2VEC2: Final = {
    "conv_dim": (HIDDEN,) * 7,
    "num_feat_extract_layers": 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": HEADS,
}

MORE: Final[Sequence[tuple[str, str]]] = (
    ("musicgen", "MusicgenForConditionalGeneration"),
    ("musicgen_melody", "MusicgenMelodyForConditionalGeneration"),
)
"""Pairs of model type and class that transformers maps to making audio from text only."""

_MUSICGEN_PARTS: Final = {
    "text_encoder": {"model_type": "t5"},
    "audio_encoder": {"model_type": "encodec"},
    "decoder": {},
}
PARTS: Final[Mapping[str, dict[str, Any]]] = {
    "musicgen": _MUSICGEN_PARTS,
    "musicgen_melody": _MUSICGEN_PARTS,
}
"""What older releases have no default for."""

CONFIGURATIONS: Final[Mapping[str, Mapping[str, Any]]] = {
    "MusicgenForConditionalGeneration": _CODEBOOKS,
    "MusicgenMelodyForConditionalGeneration": _CODEBOOKS,
    "bamba": {**_MAMBA, "attn_layer_indices": [1]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "num_hidden_layers": 2},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 10_000.0,
                "mrope_section": [2, 1, 1],
            }
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 10_000.0, "clip_qkv": 8.0}},
    "dots1": {"n_shared_experts": 1},
    "dots3_note": {
        "text_config": _DOTS3,
        "vision_config": {"adapter_in_dim": HIDDEN, "adapter_out_dim": HIDDEN},
        "audio_config": {"adapter_input_size": HIDDEN, "adapter_out_dim": HIDDEN},
    },
    "dots3_note_text": _DOTS3,
    "encoder-decoder": {"decoder": {"add_cross_attention": True}},
    "fun_asr_nano": {"adaptor_config": {"intermediate_size": HIDDEN // 4}},
    "gemma3n_text": {
        **_SHARED_KEYS,
        "intermediate_size": INNER,
        "activation_sparsity_pattern": [0.5] * 4,
    },
    "gemma4_text": _SHARED_KEYS,
    "gemma4_unified_text": _SHARED_KEYS,
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granite_speech": _GRANITE_SPEECH,
    "granite_speech_plus": _GRANITE_SPEECH,
    "granitemoehybrid": {**_MAMBA, "layer_types": ["linear_attention", "full_attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kyutai_speech_to_text": {
        "audio_bos_token_id": 64,
        "audio_pad_token_id": 0,
        "codec_config": {
            "upsample_groups": HIDDEN,
            "num_filters": 4,
            "codebook_dim": HEAD,
            "vector_quantization_hidden_dimension": HEAD,
            "codebook_size": 64,
        },
    },
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": HEADS, "head_dim": 2 * HIDDEN // HEADS, "n_groups": 2},
    "moonshine_streaming": {"num_key_value_heads": HEADS},
    "musicgen": {"decoder": {"num_codebooks": 1}},
    "musicgen_melody": {"decoder": {"num_codebooks": 1}},
    "nemo_speechlm": {
        "text_config": {
            **_MAMBA_HEADS,
            "layers_block_type": ["linear_attention", "moe", "full_attention"],
        },
        "word_timestamp_config": {"blank_token_id": 98},
    },
    "nemotron": {"num_key_value_heads": 2},
    "nemotron_h": _MAMBA_HEADS,
    "pop2piano": {"composer_vocab_size": 1},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {
        "num_hidden_layers": 2,
        "attn_layers": ["local", "lsh"],
        "attention_head_size": HEAD,
        "axial_pos_shape": (16, 8),
        "axial_pos_embds_dim": (HEAD, HIDDEN - HEAD),
    },
    "speech-encoder-decoder": {"encoder": _WAV2VEC2, "decoder": {"add_cross_attention": True}},
    "speecht5": _WAV2VEC2,
    "vibevoice": {"audio_config": _VIBEVOICE, "semantic_model_config": _VIBEVOICE},
    "vibevoice_asr": {
        "acoustic_tokenizer_chunk_size": 3200,
        "acoustic_tokenizer_encoder_config": _VIBEVOICE,
        "semantic_tokenizer_encoder_config": _VIBEVOICE,
    },
    "xlstm": {"hidden_size": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": _ZAMBA,
    "zamba2": {**_ZAMBA, "n_mamba_heads": HEADS, "mamba_headdim": 2 * HEAD},
}
"""Fields of the configuration, by model type or class; nested configurations are merged."""

FEATURES: Final[Mapping[str, Mapping[str, tuple[int, ...]]]] = {
    "CanaryForConditionalGeneration": {"input_features": (64, 16)},
    "CohereAsrForConditionalGeneration": {"input_features": (64, 16)},
    "KyutaiSpeechToTextForConditionalGeneration": {"input_values": (1, 1920 * 4)},
    "MoonshineForConditionalGeneration": {"input_values": (4000,)},
    "MoonshineStreamingForConditionalGeneration": {"input_values": (4000,)},
    "Pop2PianoForConditionalGeneration": {"input_features": (8, HIDDEN)},
    "SeamlessM4TForSpeechToText": {"input_features": (32, 160)},
    "SeamlessM4Tv2ForSpeechToText": {"input_features": (32, 160)},
    "Speech2TextForConditionalGeneration": {"input_features": (32, 80)},
    "SpeechEncoderDecoderModel": {"input_values": (4000,)},
    "SpeechT5ForSpeechToText": {"input_values": (4000,)},
    "VoxtralRealtimeForConditionalGeneration": {"input_features": (16, 64)},
    "WhisperForConditionalGeneration": {"input_features": (16, 256)},
}
"""Inputs, one example's shape each, of the classes that are not given tokens."""

_AFTER_THE_CODES: Final = {"decoder_start_token_id": VOCABULARY, "pad_token_id": VOCABULARY}
GENERATION: Final[Mapping[str, Mapping[str, Any]]] = {
    "MusicgenForConditionalGeneration": _AFTER_THE_CODES,
    "MusicgenMelodyForConditionalGeneration": _AFTER_THE_CODES,
    "musicgen": _MUSICGEN,
    "musicgen_melody": _MUSICGEN,
    "pop2piano": {"composer_to_feature_token": {"composer1": 5}},
}
"""Settings of the generation config without which a model type or class does not generate."""

_ASSISTANT: Final = "is only an assistant, and transformers refuses its default configuration"

LEFT_OUT: Final[Mapping[str, tuple[str, str]]] = {
    "gemma3n": ("needs the package timm", "requires the timm library"),
    "gemma4_assistant": (_ASSISTANT, "hidden_size_per_layer_input must be 0"),
    "gemma4_unified_assistant": (_ASSISTANT, "The set of layer types producing a cache"),
    "vibevoice": ("needs the package diffusers", "pip install diffusers"),
}
"""Why a model type is not in the zoo, and what the error says that trying it raises."""
