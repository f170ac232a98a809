"""FSDP2: parameters, gradients and optimizer state sharded over the processes, and loaded from whole checkpoints."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import PreTrainedModel

from arwkv_store.errors import UsageError
from arwkv_student.model.loading import kept_attention, load_any_student


def shard(model: PreTrainedModel, device: torch.device) -> None:
    """Shard a model on the CPU over the processes: each layer's MLP, the rest of the layer, an embedding of its own.

    The last norm and the head (with an embedding that shares its weight) go with the root. No device holds more than
    its share, one layer, and the root. Parameters are gathered in their own types: in bf16 the decay would lose
    precision. Raises UsageError without torchrun.
    """
    require_processes()
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for layer in [module for module in model.modules() if type(module).__name__ in set(model._no_split_modules or ())]:
        if isinstance(mlp := getattr(layer, "mlp", None), nn.Module):
            fully_shard(mlp, mesh=mesh)
        fully_shard(layer, mesh=mesh)
    if (embedding := model.get_input_embeddings()).weight is not model.get_output_embeddings().weight:
        fully_shard(embedding, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule) and device.type == "cpu":
            module.set_force_sum_reduction_for_comms(True)  # gloo has no average


def require_processes() -> None:
    """Raise UsageError without torchrun."""
    if not torch.distributed.is_initialized():
        raise UsageError("--fsdp: only one process; start with torchrun --nproc-per-node N -m arwkv_student.cli")


def is_sharded(model: nn.Module) -> bool:
    """Whether `shard` sharded it."""
    return isinstance(model, FSDPModule)


def full_state_dict(model: nn.Module) -> dict[str, Any]:
    """The full state dict on the CPU, in process 0 only; all processes must call it."""
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Load the weights of a checkpoint's folder, which only process 0 reads."""
    weights: dict[str, Any] = {}
    if torch.distributed.get_rank() == 0:
        if kept_attention(checkpoint):
            weights = load_any_student(checkpoint).state_dict()
        else:
            for file in checkpoint.glob("model*.safetensors"):
                weights |= load_file(file)
    set_model_state_dict(model, weights, options=_from_process_0(strict=False))


def load_optimizer_state(model: nn.Module, optimizer: torch.optim.Optimizer, file: Path) -> None:
    """The whole state by parameter name, for a model of any number of processes, sharded or not."""
    reads = not is_sharded(model) or torch.distributed.get_rank() == 0
    state = torch.load(file, map_location="cpu", weights_only=True, mmap=True) if reads else {}
    set_optimizer_state_dict(
        model, optimizer, state, options=_from_process_0() if is_sharded(model) else StateDictOptions()
    )


def _from_process_0(strict: bool = True) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=strict)
