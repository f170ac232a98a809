"""Muon for matrices, AdamW for everything else, as one optimizer.

Muon (arXiv 2502.16982, torch's own) orthogonalizes the momentum of a matrix. With `match_rms_adamw` its update has the
size of AdamW's, so the learning rates stay those of AdamW. It keeps one value for each weight where AdamW keeps two.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import AdamW

MOMENTUM = 0.95


class MuonAndAdamW(torch.optim.Optimizer):
    """Each group says by `muon` which of both it is for. Groups and state are shared with both, so that a scheduler
    and a checkpoint see one optimizer."""

    def __init__(self, groups: Iterable[dict[str, Any]], *, lr: float, betas: tuple[float, float], eps: float) -> None:
        self._betas, self._eps = betas, eps
        super().__init__(groups, {"lr": lr})
        self._share()

    def _share(self) -> None:
        """Hand each group to its optimizer, as the same dictionary."""
        kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for group in self.param_groups:
            kinds[group["muon"]].append(group)
        self._inner: list[torch.optim.Optimizer] = []
        if kinds[True]:
            options = {"momentum": MOMENTUM, "adjust_lr_fn": "match_rms_adamw"}
            self._inner.append(torch.optim.Muon(kinds[True], **options))  # type: ignore[arg-type] # its groups are dicts
        if kinds[False]:
            self._inner.append(AdamW(kinds[False], betas=self._betas, eps=self._eps, fused=True))
        for inner in self._inner:
            inner.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override] # torch's overloads
        """One step of both."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for inner in self._inner:
            inner.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Groups and state are new objects afterwards."""
        super().load_state_dict(state_dict)
        self._share()
