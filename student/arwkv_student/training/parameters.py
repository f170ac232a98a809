"""Which parameters a stage trains, and at which rate."""

from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from transformers import PreTrainedModel

from arwkv_store.errors import UsageError
from arwkv_student.model.time_mix_options import TRANSFORMER, active_mlp
from arwkv_student.training.plan import StagePlan

# These have two dimensions but are not matrices: the token shift's mix [6, C] and the bonus [H, D].
STACKED_VECTORS = (".shift_mix", ".bonus")

RECALL = (
    *(".time_mix.receptance", ".time_mix.key", ".self_attn.q_proj", ".self_attn.k_proj"),
    *(".self_attn.q_norm", ".self_attn.k_norm"),
)
"""What decides which earlier token is read: tuning on short texts makes students forget it (arXiv 2606.11052)."""


def choose_trained(model: PreTrainedModel, trained: str) -> None:
    """Freeze parameters: none ("all"), the MLPs ("frozen-mlp"), `RECALL` ("spare-recall"), or all but the time mixers.

    "preset" is what stage distill trains by the model's preset. Raises UsageError for parts that the model lacks.
    """
    if trained == "preset":
        trained = "all" if active_mlp(getattr(model.config, "preset", TRANSFORMER)) else "frozen-mlp"
    parts = {"all": ("",), "frozen-mlp": (".mlp.",), "time-mix": (".time_mix.",), "spare-recall": RECALL}[trained]
    named = {name: any(part in name for part in parts) for name, _ in model.named_parameters()}
    if not any(named.values()):
        raise UsageError(f"--trained {trained}: no parameter of the student is {parts[0].strip('.')}; choose all")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(named[name] == (trained in ("all", "time-mix")))


def hold_frozen_in_bf16(model: PreTrainedModel) -> None:
    """Keep the layers' frozen weights of matrix products in bf16, where that rounds none of their values.

    Autocast would cast them to bf16 in every pass, with the same result. Weights of a base that was saved in bf16 take
    half of the memory so, and half of what a sharded student gathers. Process 0 decides: the others may have no values.
    """
    frozen = {
        name: module
        for name, module in model.named_modules()
        if ".layers." in name and type(module) is torch.nn.Linear and not module.weight.requires_grad
    }
    exact = [name for name, module in frozen.items() if not module.weight.is_meta and _is_exact(module.weight)]
    for name in broadcast_object_list([exact])[0]:
        held = frozen[name].weight.detach().to(torch.bfloat16)
        frozen[name].weight = torch.nn.Parameter(held, requires_grad=False)


def _is_exact(weight: torch.Tensor) -> bool:
    return torch.equal(weight.to(torch.bfloat16).float(), weight)


def parameter_groups(
    model: torch.nn.Module, plan: StagePlan, weight_decay: float, *, muon: bool = False
) -> list[dict[str, Any]]:
    """The parameters that train, by learning rate and by whether they decay.

    With `muon`, each group also says whether its parameters are matrices of the layers: an embedding's or head's rows
    are vectors, of one token each.
    """
    groups: dict[tuple[bool, bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() >= 2 and not name.endswith(STACKED_VECTORS)
            is_matrix = muon and decays and parameter.dim() == 2 and ".layers." in name
            groups.setdefault((".time_mix." in name, decays, is_matrix), []).append(parameter)
    rest = plan.learning_rate if plan.rest_learning_rate is None else plan.rest_learning_rate
    return [
        {"params": some, "lr": plan.learning_rate if mixes else rest, "weight_decay": weight_decay * decays}
        | ({"muon": is_matrix} if muon else {})
        for (mixes, decays, is_matrix), some in groups.items()
    ]
