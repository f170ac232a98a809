"""The start of a sharded student: process 0 reads it, and the others have only the shares that they get from it."""

from collections.abc import Callable

import torch
from accelerate.utils import broadcast_object_list
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import PreTrainedModel

from arwkv_student.model.loading import empty_student
from arwkv_student.sharding.fsdp import is_sharded, require_processes, shard


def read_in_process_0(read: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """The student that `read` gives; in all other processes a model of the same configuration without memory."""
    require_processes()
    model = read() if torch.distributed.get_rank() == 0 else None
    (config,) = broadcast_object_list([None if model is None else model.config])
    return empty_student(config) if model is None else model


def share_out(model: PreTrainedModel, device: torch.device) -> None:
    """Shard a student from `read_in_process_0`, and hand each process its shares of the weights, one after another.

    A student that is sharded already stays as it is.
    """
    if is_sharded(model):
        return
    weights = model.state_dict() if torch.distributed.get_rank() == 0 else {}
    shard(model, device)
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True, strict=False)
    set_model_state_dict(model, weights, options=options)
