"""A tiny random checkpoint of each family that students start from, with the tiny teacher's tokenizer."""

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from arwkv_student.bases.checkpoint import open_base
from arwkv_student.bases.convert import convert, student_config
from arwkv_student.bases.tokenizer import copy_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": 544,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": None,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 5e5}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "qwen3_moe": {"head_dim": 32, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "llama": {"head_dim": 32, "rope_parameters": {**LLAMA3, "original_max_position_embeddings": 64}},
    "mistral": {"head_dim": 32, "sliding_window": 6},
    "olmo2": {},
}
"""What differs from `COMMON`, by model type."""


def tiny_base(model_type: str, tokenizer: Path, folder: Path, **more: Any) -> Path:
    """Write the checkpoint; `tokenizer`: a folder that has one. Norms and biases are moved off their start."""
    shutil.copytree(tokenizer, folder, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
    config = AutoConfig.for_model(model_type, **COMMON | FAMILIES[model_type] | more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


def hybrid(teacher: Path, folder: Path, mixed: int) -> Path:
    """An untrained student with the teacher's tokenizer: layer `mixed` mixes time, visibly, the others attend."""
    base = open_base(str(teacher))
    torch.manual_seed(0)
    model = convert(base, student_config(base, "arwkv", {"head_dim": 16}, [mixed])).model
    torch.nn.init.normal_(model.model.layers[mixed].time_mix.output.weight, std=0.2)
    model.save_pretrained(folder)
    copy_tokenizer(teacher, folder)
    return folder
