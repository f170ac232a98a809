"""A tiny random teacher of each family that is compared with transformers."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMultimodalLM, AutoTokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 544,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {
    **EXPERTS,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "kv_lora_rank": 512,
    "q_lora_rank": 32,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 32,
    "v_head_dim": 32,
    "head_dim": 64,
}
OWN: dict[str, dict[str, Any]] = {
    "qwen3_moe": {**EXPERTS, "num_experts": 4},
    "mistral": {"sliding_window": 24},
    "gemma2": {"sliding_window": 24, "query_pre_attn_scalar": 32, "final_logit_softcapping": 3.0},
    "gemma3_text": {"sliding_window": 24, "query_pre_attn_scalar": 32},
    "cohere": {"logit_scale": 0.25},
    "granite": {
        "logits_scaling": 4.0,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.2,
    },
    "gpt_oss": {**EXPERTS, "num_local_experts": 4, "sliding_window": 24, "intermediate_size": 64},
    "deepseek_v2": LATENT | {"topk_method": "greedy"},
    "deepseek_v3": LATENT | {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "qwen3_next": {
        **EXPERTS,
        "num_experts": 4,
        "shared_expert_intermediate_size": 32,
        "linear_num_value_heads": 2,
        "linear_num_key_heads": 1,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "layer_types": ["linear_attention", "full_attention"],
    },
}
"""What differs from `COMMON`, by model type."""
SIGHT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
PICTURES = {**SIGHT, "image_size": 28, "patch_size": 14}
SEEING = {"depth": 1, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 64}
MULTIMODAL_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}}
WRAPPERS: dict[str, dict[str, Any]] = {
    "idefics3": {
        "text_config": {"model_type": "llama"},
        "vision_config": PICTURES,
        "image_token_id": 540,
        "pad_token_id": 0,
    },
    "qwen2_audio": {
        "text_config": {"model_type": "qwen2"},
        "audio_config": {
            "d_model": 32,
            "encoder_layers": 1,
            "encoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "num_mel_bins": 16,
        },
        "audio_token_index": 540,
    },
    "llava": {"text_config": {"model_type": "llama"}, "vision_config": PICTURES, "image_token_index": 540},
    "mistral3": {
        "text_config": {"model_type": "mistral", "sliding_window": 24},
        "vision_config": {**PICTURES, "head_dim": 16},
        "image_token_index": 540,
        "tie_word_embeddings": False,
    },
    "gemma3": {
        "text_config": {"model_type": "gemma3_text", **OWN["gemma3_text"]},
        "vision_config": PICTURES,
        "mm_tokens_per_image": 4,
        "boi_token_index": 541,
        "eoi_token_index": 542,
        "image_token_index": 540,
    },
    "qwen2_vl": {
        "text_config": {"model_type": "qwen2_vl_text", **MULTIMODAL_ROPE},
        "vision_config": {"depth": 1, "embed_dim": 32, "hidden_size": 64, "num_heads": 2},
    },
    "qwen2_5_vl": {
        "text_config": {"model_type": "qwen2_5_vl_text", **MULTIMODAL_ROPE},
        "vision_config": {**SEEING, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {"model_type": "qwen3_vl_text", **MULTIMODAL_ROPE},
        "vision_config": {**SEEING, "deepstack_visual_indexes": [], "num_position_embeddings": 16},
    },
}
"""Multimodal models, which read a text alone here; their text part differs from `COMMON` by `text_config`."""
TOKENS_OF_PICTURES = {
    name: 540 + number
    for number, name in enumerate(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"))
}


def tiny_teacher_of(model_type: str, tokenizer: Path, folder: Path) -> Path:
    """Write the checkpoint in fp32; `tokenizer`: a folder that has one."""
    torch.manual_seed(1)
    if wrapper := WRAPPERS.get(model_type):
        more = TOKENS_OF_PICTURES if "_vl" in model_type else {}
        config = AutoConfig.for_model(model_type, **more, **wrapper | {"text_config": COMMON | wrapper["text_config"]})
        model = AutoModelForMultimodalLM.from_config(config, dtype=torch.float32)
    else:
        config = AutoConfig.for_model(model_type, **COMMON | OWN.get(model_type, {}))
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder)
    return folder
