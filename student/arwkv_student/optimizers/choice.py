"""The optimizer that `--optimizer` names."""

from collections.abc import Iterable
from typing import Any

import torch

from arwkv_store.errors import UsageError
from arwkv_student.optimizers.muon import MuonAndAdamW

EIGHT_BIT = ("torchao.optim", "bitsandbytes.optim")
"""Packages with an AdamW whose moments are in 8 bits, in the order of choice."""


def make_optimizer(
    name: str, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float
) -> torch.optim.Optimizer:
    """`adamw` (torch's, fused), `adamw8bit` or `muon`, over groups of parameters with `lr` and `weight_decay`.

    For `muon` a group says by its key `muon` whether its parameters are the matrices that Muon is made for. Raises
    UsageError where the package of `adamw8bit` is missing.
    """
    if name == "muon":
        return MuonAndAdamW(groups, lr=lr, betas=betas, eps=eps)
    if name == "adamw8bit":
        kind: Any = _eight_bit()
        made: torch.optim.Optimizer = kind(list(groups), lr=lr, betas=betas, eps=eps)
        return made
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


def _eight_bit() -> Any:
    import importlib

    for module in EIGHT_BIT:
        try:
            return importlib.import_module(module).AdamW8bit
        except ImportError:
            continue
    raise UsageError(
        "--optimizer adamw8bit: neither torchao nor bitsandbytes is installed; pip install torchao, or choose muon, "
        "which keeps half of AdamW's state"
    )
