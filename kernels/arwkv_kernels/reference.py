"""The RWKV-7 recurrence, one token at a time: the reference for every faster path.

    S_t = diag(exp w_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ        o_t = scale · r_tᵀ S_t

RWKV-7 "Goose" (arXiv 2503.14456), eq. 17 onwards, with the state laid out [K, V] (keys along rows).
B batch, T time, H heads, D head size.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from arwkv_kernels.arguments import WkvInputs


def wkv7_step_torch(inputs: WkvInputs, state_BHKV: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One token: inputs [B, H, D] and state [B, H, K, V], of one dtype. Returns (o [B, H, D], new state)."""
    r, w, k, v, a, b = (x.unsqueeze(-1) for x in inputs)
    removed_BH1V = a.mT @ state_BHKV
    state_BHKV = w.exp() * state_BHKV + b @ removed_BH1V + k @ v.mT
    return (scale * (r.mT @ state_BHKV)).squeeze(-2), state_BHKV


def wkv7_recurrence(inputs: WkvInputs, state_BHKV: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """The loop over time in the dtype of its inputs [B, T, H, D]. Correct for every log decay; differentiable.

    Autograd keeps one state per token. Use it for checks, and for decays that no chunked form can represent.
    """
    outputs = []
    for step in zip(*(x.unbind(1) for x in inputs), strict=True):
        o_BHD, state_BHKV = wkv7_step_torch(WkvInputs(*step), state_BHKV, scale)
        outputs.append(o_BHD)
    o_BTHD = torch.stack(outputs, dim=1) if outputs else inputs.v
    return o_BTHD, state_BHKV


def wkv7_reference(
    inputs: WkvInputs, state_NHKV: Tensor, offsets: list[int] | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The recurrence in fp64, sequence by sequence. Returns fp64 (o [B, T, H, D], final state [N, H, K, V])."""
    inputs = WkvInputs(*(x.double() for x in inputs))
    state_NHKV = state_NHKV.double()
    if offsets is None:
        return wkv7_recurrence(inputs, state_NHKV, scale)
    pieces = [
        wkv7_recurrence(WkvInputs(*(x[:, start:stop] for x in inputs)), state_NHKV[n : n + 1], scale)
        for n, (start, stop) in enumerate(pairwise(offsets))
    ]
    return torch.cat([o for o, _ in pieces], dim=1), torch.cat([s for _, s in pieces])
