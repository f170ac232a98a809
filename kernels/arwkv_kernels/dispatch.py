"""`wkv7` and `wkv7_step`: check the arguments, choose a backend, say which and why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

import torch
from torch import Tensor

from arwkv_kernels.arguments import (
    WkvInputs,
    check_inputs,
    compute_dtype,
    lowest_log_decay,
    sequence_offsets,
    starting_state,
)
from arwkv_kernels.chunked import wkv7_chunked
from arwkv_kernels.reference import wkv7_reference, wkv7_step_torch

# Two states of this size lie on a thread's stack: 1 MiB in fp64.
LARGEST_COMPILED_HEAD = 256
BACKENDS = ("auto", "reference", "torch", "cpu", "triton")


@dataclass(frozen=True)
class BackendChoice:
    """Which backend runs, and the reason in words."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


def backend_for(x: Tensor, *, backend: str = "auto", operation: str = "wkv7") -> BackendChoice:
    """The backend that `operation` ("wkv7", "wkv7_step", "linear_sparse_kl") uses for a tensor like `x`, and why.

    With a `backend` other than "auto" this is that backend, or a ValueError that says why it cannot run.
    """
    if backend not in BACKENDS:
        raise ValueError(f'{operation}: backend "{backend}" is not known; choose one of {", ".join(BACKENDS)}')
    if backend != "auto":
        if obstacle := _obstacle(backend, x, operation):
            raise ValueError(f'{operation}: backend "{backend}" cannot run: {obstacle}; use backend="auto"')
        return BackendChoice(backend, "asked for")
    for candidate, praise in (("triton", "Triton kernels on a CUDA device"), ("cpu", "numba loops on the CPU")):
        obstacle = _obstacle(candidate, x, operation)
        if obstacle is None:
            return BackendChoice(candidate, praise)
        if candidate == ("triton" if x.is_cuda else "cpu"):
            return BackendChoice("torch", f"no {candidate} backend: {obstacle}")
    return BackendChoice("torch", f"plain torch is the only path on {x.device.type}")


def _obstacle(backend: str, x: Tensor, operation: str) -> str | None:
    """Why `backend` cannot run `operation` on `x`, or None if it can."""
    if backend == "cpu":
        if x.device.type != "cpu":
            return f"the tensor is on {x.device.type}"
        if operation != "wkv7":
            return f"{operation} has no compiled loop"
        if x.shape[-1] % 2 or x.shape[-1] > LARGEST_COMPILED_HEAD:
            return f"head size {x.shape[-1]} is odd or above {LARGEST_COMPILED_HEAD}"
        return None if importlib.util.find_spec("numba") else "numba is not installed (pip install numba)"
    if backend == "triton":
        return "not built"
    return None


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
    the natural log of the decay, at most 0. RWKV-7's own lie above -0.607; lower ones are correct, but may run slowly.
    With `cu_seqlens` [N + 1] (integers rising from 0 to T; B must be 1) the sequences lie end to end along T.
    `initial_state`: [N, H, K, V], N = B without `cu_seqlens`; zeros where absent.

    Returns o [B, T, H, D] in v's dtype, and the final state [N, H, K, V] if `output_final_state`, else None.
    `backend`: see `backend_for`. Raises ValueError for shapes, devices, decays or a backend that cannot be.
    Source: RWKV-7 "Goose", arXiv 2503.14456.
    """
    inputs = WkvInputs(r, w, k, v, a, b)
    check_inputs(inputs, "BTHD")
    choice = backend_for(r, backend=backend)
    offsets = sequence_offsets(r.shape, cu_seqlens)
    state = starting_state(inputs, initial_state, r.shape[0] if offsets is None else len(offsets) - 1)
    with torch.autocast(r.device.type, enabled=False):
        o, state = _run(choice.name, inputs, state, offsets, scale)
    return o.to(v.dtype), state if output_final_state else None


def _run(
    backend: str, inputs: WkvInputs, state: Tensor, offsets: list[int] | None, scale: float
) -> tuple[Tensor, Tensor]:
    if backend == "reference":
        o, final_state = wkv7_reference(inputs, state, offsets, scale)
        return o, final_state.to(state.dtype)
    if backend == "cpu":
        from arwkv_kernels.compiled import wkv7_compiled

        lowest_log_decay(inputs.w)
        return wkv7_compiled(inputs, state, offsets, scale)
    inputs = WkvInputs(*(x.to(state.dtype) for x in inputs))
    return wkv7_chunked(inputs, state, offsets, scale)


def wkv7_step(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor,
    *,
    scale: float = 1.0,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence, for decoding: inputs [B, H, D], state [B, H, K, V].

    Returns (o [B, H, D] in v's dtype, the new state, fp32); `state` itself is left as it was.
    """
    inputs = WkvInputs(r, w, k, v, a, b)
    check_inputs(inputs, "BHD")
    backend_for(r, backend=backend, operation="wkv7_step")
    state = starting_state(inputs, state, r.shape[0])
    with torch.autocast(r.device.type, enabled=False):
        o, new_state = wkv7_step_torch(WkvInputs(*(x.to(compute_dtype(r.dtype)) for x in inputs)), state, scale)
    return o.to(v.dtype), new_state
