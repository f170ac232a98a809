"""`wkv7` and `wkv7_step`: check the arguments, then run them on the backend that `backend_for` names."""

from __future__ import annotations

import torch
from torch import Tensor

from arwkv_kernels.arguments import (
    WkvInputs,
    check_inputs,
    check_packing,
    check_slots,
    lowest_log_decay,
    require_offsets,
    sequence_offsets,
    starting_state,
    wants_gradient,
)
from arwkv_kernels.backends import backend_for
from arwkv_kernels.chunked import wkv7_chunked
from arwkv_kernels.reference import wkv7_reference, wkv7_step_torch


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
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """The RWKV-7 time-mixing recurrence over whole sequences, differentiable in every tensor.

        S_t = diag(exp w_t) S_{t-1} + b_t (a_tᵀ S_{t-1}) + k_t v_tᵀ        o_t = scale · r_tᵀ S_t

    r, w, k, v, a, b: [B, T, H, D] in fp32, bf16, fp16 or fp64; state and arithmetic are fp32 (fp64 for fp64). `w` is
    the natural log of the decay, at most 0. RWKV-7's own are above -0.607; lower ones are correct, but may be slow.
    With `cu_seqlens` [N + 1] (integers rising from 0 to T; B must be 1) the sequences are concatenated along T.
    `initial_state`: [N, H, K, V], N = B without `cu_seqlens`; zeros by default.

    Returns o [B, T, H, D] in v's dtype, and the final state [N, H, K, V] if `output_final_state`, else None. `backend`:
    see `backend_for`. Raises ValueError for invalid shapes, devices, offsets, decays or backends. On a GPU the host
    does not wait: bad offsets raise a device-side assertion, and a positive or NaN `w` is used unchanged, token by
    token. Source: RWKV-7 "Goose", arXiv 2503.14456.
    """
    inputs = WkvInputs(r, w, k, v, a, b)
    check_inputs(inputs, "BTHD")
    choice = backend_for(v, backend=backend)
    state = starting_state(inputs, initial_state, check_packing(r.shape, cu_seqlens))
    with torch.autocast(r.device.type, enabled=False):
        o, state = _run(choice.name, inputs, state, cu_seqlens, scale)
    return o.to(v.dtype), state if output_final_state else None


def _run(
    backend: str, inputs: WkvInputs, state: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    length = inputs.r.shape[1]
    if backend == "triton":
        from arwkv_kernels.triton.wkv7 import wkv7_triton

        if inputs.r.is_cuda:
            require_offsets(length, cu_seqlens)
        else:
            lowest_log_decay(inputs.w)
            sequence_offsets(length, cu_seqlens)
        return wkv7_triton(inputs, state, cu_seqlens, scale)
    lowest_w = lowest_log_decay(inputs.w)
    offsets = sequence_offsets(length, cu_seqlens)
    if backend == "reference":
        o, final_state = wkv7_reference(inputs, state, offsets, scale)
        return o, final_state.to(state.dtype)
    if backend == "cpu":
        from arwkv_kernels.compiled import wkv7_compiled

        return wkv7_compiled(inputs, state, offsets, scale, lowest_w)
    return wkv7_chunked(WkvInputs(*(x.to(state.dtype) for x in inputs)), state, offsets, scale, lowest_w)


def wkv7_step(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    *,
    slots: Tensor | None = None,
    scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence, for decoding: inputs [B, H, D], state [B, H, K, V].

    Returns (o [B, H, D] in v's dtype, the new state, fp32); `state` itself is not changed. Differentiable in torch.
    With `slots` [B], integers that differ, `state` [S, H, K, V] holds the states of many sequences: row b goes on from
    state[slots[b]], which is changed in place, and `state` is returned. It may have gaps between slots, and there is no
    gradient. Raises ValueError as `wkv7` does; on a GPU `w` and the values of `slots` are not checked.
    """
    inputs = WkvInputs(r, w, k, v, a, b)
    check_inputs(inputs, "BHD")
    choice = backend_for(v, backend=backend, operation="wkv7_step")
    if slots is not None:
        check_slots(inputs, state, slots)
        return _step_in_place(choice.name, inputs, state, slots, scale).to(v.dtype), state
    state = starting_state(inputs, state, r.shape[0])
    if not r.is_cuda:
        lowest_log_decay(w)
    learning = wants_gradient(*inputs, state)
    if choice.name == "triton" and not learning:
        from arwkv_kernels.triton.wkv7_step import wkv7_step_triton

        return wkv7_step_triton(inputs, state, scale)
    if choice.name == "cpu" and not learning:
        from arwkv_kernels.compiled import wkv7_step_compiled

        o, new_state = wkv7_step_compiled(inputs, state, scale)
        return o.to(v.dtype), new_state
    with torch.autocast(r.device.type, enabled=False):
        o, new_state = wkv7_step_torch(WkvInputs(*(x.to(state.dtype) for x in inputs)), state, scale)
    return o.to(v.dtype), new_state


@torch.no_grad()
def _step_in_place(backend: str, inputs: WkvInputs, state: Tensor, slots: Tensor, scale: float) -> Tensor:
    if not state.is_cuda:
        lowest_log_decay(inputs.w)
    if backend == "triton":
        from arwkv_kernels.triton.wkv7_step import wkv7_step_triton_in_place

        return wkv7_step_triton_in_place(inputs, state, slots, scale)
    if backend == "cpu":
        from arwkv_kernels.compiled import wkv7_step_compiled_in_place

        return wkv7_step_compiled_in_place(inputs, state, slots, scale)
    with torch.autocast(state.device.type, enabled=False):
        raised = WkvInputs(*(x.to(state.dtype) for x in inputs))
        o, state[slots] = wkv7_step_torch(raised, state[slots], scale)
    return o
