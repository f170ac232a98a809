"""Which parameters a stage trains, and at which rate."""

from typing import Any

import torch
from transformers import PreTrainedModel

from arwkv_store.errors import UsageError
from arwkv_student.model.time_mix_options import TRANSFORMER, active_mlp
from arwkv_student.training.plan import StagePlan

# These have two dimensions but are not matrices: the token shift's mix [6, C] and the bonus [H, D].
STACKED_VECTORS = (".shift_mix", ".bonus")


def choose_trained(model: PreTrainedModel, trained: str) -> None:
    """Freeze parameters: none ("all"), the MLPs ("frozen-mlp"), or all except the time mixers.

    "preset" is what stage distill trains by the model's preset. Raises UsageError for parts that the model lacks.
    """
    if trained == "preset":
        trained = "all" if active_mlp(getattr(model.config, "preset", TRANSFORMER)) else "frozen-mlp"
    part = {"all": "", "frozen-mlp": ".mlp.", "time-mix": ".time_mix."}[trained]
    if not any(part in name for name, _ in model.named_parameters()):
        raise UsageError(f"--trained {trained}: no parameter of the student is {part.strip('.')}; choose all")
    for name, parameter in model.named_parameters():
        trains = {"all": True, "frozen-mlp": ".mlp." not in name, "time-mix": ".time_mix." in name}[trained]
        parameter.requires_grad_(trains)


def parameter_groups(model: torch.nn.Module, plan: StagePlan, weight_decay: float) -> list[dict[str, Any]]:
    """The parameters that train, by learning rate and by whether they decay."""
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and not name.endswith(STACKED_VECTORS)
            groups.setdefault((".time_mix." in name, decays), []).append(parameter)
    rest = plan.learning_rate if plan.rest_learning_rate is None else plan.rest_learning_rate
    return [
        {"params": some, "lr": plan.learning_rate if mixes else rest, "weight_decay": weight_decay * decays}
        for (mixes, decays), some in groups.items()
    ]
