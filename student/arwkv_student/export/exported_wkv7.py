"""The recurrence in plain torch, for exported students: no compiled kernels, no other package than torch."""

import torch
from torch import Tensor

from arwkv_kernels.arguments import WkvInputs, sequence_offsets, starting_state
from arwkv_kernels.chunked import wkv7_chunked
from arwkv_kernels.reference import wkv7_step_torch

# The lowest log decay of RWKV-7: -exp(-1/2).
LOWEST_LOG_DECAY = -0.6065306597126334


def wkv7(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    *,
    initial_state: Tensor | None = None,
    output_final_state: bool = False,
    cu_seqlens: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor | None]:
    """`arwkv_kernels.wkv7` without a choice of backend: same arguments, shapes and formula."""
    inputs = WkvInputs(r, w, k, v, a, b)
    offsets = sequence_offsets(r.shape[1], cu_seqlens)
    state = starting_state(inputs, initial_state, r.shape[0] if offsets is None else len(offsets) - 1)
    with torch.autocast(r.device.type, enabled=False):
        inputs = WkvInputs(*(x.to(state.dtype) for x in inputs))
        o, state = wkv7_chunked(inputs, state, offsets, scale, LOWEST_LOG_DECAY)
    return o.to(v.dtype), state if output_final_state else None


def wkv7_step(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor, *, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`arwkv_kernels.wkv7_step` without a choice of backend."""
    with torch.autocast(r.device.type, enabled=False):
        o, state = wkv7_step_torch(WkvInputs(*(x.to(state.dtype) for x in (r, w, k, v, a, b))), state, scale)
    return o.to(v.dtype), state
