"""A trained student from its folder, and its device, precision and padding rows."""

import functools
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from transformers import PreTrainedConfig, PreTrainedModel

from arwkv_kernels.precision import compute_dtype, multiplies_bf16
from arwkv_store.errors import NotFound, UsageError
from arwkv_store.format.model_files import read_json, require_whole_weights
from arwkv_store.format.weights import hash_of_checkpoint
from arwkv_student.first_process import say_once
from arwkv_student.model.configuration import ArwkvConfig
from arwkv_student.model.modeling import ArwkvForCausalLM
from arwkv_student.model.transformer_student import load_transformer, transformer_of


def load_any_student(folder: Path) -> PreTrainedModel:
    """A trained student: `load_student`, or with preset `transformer` any causal language model, in fp32."""
    if kept_attention(folder):
        require_whole_weights(f"model {folder}", folder)
        return load_transformer(folder)
    return load_student(folder)


def kept_attention(folder: Path) -> bool:
    """Whether the folder's model is no student with time mixers. Raises NotFound where it describes no model."""
    return bool(model_type(folder) != "arwkv")


def empty_student(config: PreTrainedConfig) -> PreTrainedModel:
    """A student of this configuration whose parameters have no memory yet (device `meta`)."""
    with init_empty_weights():
        model = ArwkvForCausalLM(config) if isinstance(config, ArwkvConfig) else transformer_of(config)(config)
    model.tie_weights()
    return model


def load_student(folder: Path, dtype: torch.dtype | None = None) -> ArwkvForCausalLM:
    """A trained student, in `dtype` or the precision it was saved in; the decay's bias stays fp32 in half precision.

    Raises NotFound or UsageError if there is none.
    """
    require_student(folder)
    require_whole_weights(f"model {folder}", folder)
    model: ArwkvForCausalLM = ArwkvForCausalLM.from_pretrained(folder, dtype="auto" if dtype is None else dtype)
    return model


def require_student(folder: Path) -> None:
    """Raise NotFound or UsageError unless the folder describes a student."""
    found = model_type(folder)
    if found != "arwkv":
        raise UsageError(
            f"model {folder}: model type {found!r}, not 'arwkv'; train one with --base (of preset transformer, "
            "the folder itself is an ordinary checkpoint)"
        )


def model_type(folder: Path) -> Any:
    """What config.json says that the folder's model is. Raises NotFound without one."""
    config = folder / "config.json"
    if not config.is_file():
        raise NotFound(f"model {folder}: no config.json there; name the folder of a run, or one of its stages")
    return read_json(f"model {folder}", config).get("model_type")


def checkpoint_hash(folder: Path) -> str:
    """`hash_of_checkpoint` of a student. Raises NotFound without weights."""
    if not any(folder.glob("model*.safetensors")):
        raise NotFound(f"model {folder}: no model.safetensors there; name a trained student's folder")
    return hash_of_checkpoint(folder, read_json(f"model {folder}", folder / "config.json"))


def accelerator() -> torch.device:
    """The device that models run on outside training: the machine's accelerator, or the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


@functools.cache
def computes_in_bf16(dtype: str) -> bool:
    """Whether matrix products run in bf16 with `--dtype dtype`; the first rank prints it on stderr once."""
    bf16 = compute_dtype(dtype, accelerator()) == torch.bfloat16
    native = "multiplies bf16 natively" if multiplies_bf16(accelerator()) else "does not multiply bf16 natively"
    say_once(f"matrix products in {'bf16' if bf16 else 'fp32'} (--dtype {dtype}); the {accelerator().type} {native}")
    return bf16


def hold_products_in_bf16(model: ArwkvForCausalLM) -> None:
    """Cast the weights of all matrix products to bf16 for inference: autocast would cast them at every token."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.to(torch.bfloat16), requires_grad=False)


def padding_rows(tokenizer: Any, rows: int) -> list[int] | None:
    """The head's padding rows, which training did not make unlikely; None if there are none."""
    return list(range(max(tokenizer.get_vocab().values()) + 1, rows)) or None
