"""The Triton recurrence under autograd: launches the chunk kernels, then the exact ones for pairs they flagged.

Kept for the backward: the inputs, u (one more tensor like v), and one state per chunk.
B batch, T time, H heads, D head size, N sequences, P rows of checkpoints.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arwkv_kernels.arguments import WkvInputs, wants_gradient
from arwkv_kernels.triton.configs import FORM, WKV7
from arwkv_kernels.triton.launch import INTERPRETED, device_of, in_fp32
from arwkv_kernels.triton.parallel.autograd import WkvInSpans
from arwkv_kernels.triton.wkv7_backward import wkv7_state_gradient_kernel, wkv7_token_gradients_kernel
from arwkv_kernels.triton.wkv7_exact import wkv7_exact_backward_kernel, wkv7_exact_forward_kernel
from arwkv_kernels.triton.wkv7_forward import wkv7_forward_kernel

# Products summed over the head's D channels take bf16 operands. Those over a chunk's 16 tokens take tf32: they are few,
# and rounding both kinds to bf16 leaves gradients off by more than bf16 itself is.
PRODUCTS = dict(zip(("OVER_HEAD", "OVER_TOKENS"), ("ieee", "ieee") if INTERPRETED else ("bf16", "tf32"), strict=True))
STORED = torch.float32 if INTERPRETED else torch.bfloat16


def wkv7_triton(
    inputs: WkvInputs, state_NHKV: Tensor, cu_seqlens: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Inputs [B, T, H, D] in fp32, bf16 or fp16, state fp32. Returns (o in v's dtype, final state fp32).

    Where v is fp32 the chunk-parallel form runs, with fp32 products; else the form that configs.py names.
    """
    batch, length, _, size = inputs.r.shape
    device = inputs.r.device
    if cu_seqlens is None:
        cu_seqlens = torch.arange(batch + 1, device=device) * length
    cu_seqlens = cu_seqlens.to(device, torch.int64).contiguous()
    keep = wants_gradient(*inputs, state_NHKV)
    function = WkvInSpans if in_fp32(inputs.v) or FORM[size] == "parallel" else _Triton
    o, final = function.apply(*inputs, state_NHKV, cu_seqlens, scale, keep)  # type: ignore[no-untyped-call]  # torch
    return o, final


class _Triton(torch.autograd.Function):
    @staticmethod
    # Any: autograd's context has no public type; arguments: the six inputs, state, offsets, scale, whether to keep.
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs = WkvInputs(*(x.contiguous() for x in arguments[:6]))
        state, cu_seqlens, scale, keep = arguments[6].contiguous(), *arguments[7:]
        launch = _Launch(inputs, state.shape[0])
        o, final = torch.empty_like(inputs.v), torch.empty_like(state)
        unsafe = torch.zeros(launch.pairs, dtype=torch.int32, device=o.device)
        u = torch.empty(inputs.v.shape if keep else 0, dtype=STORED, device=o.device)
        checkpoints = launch.empty_states() if keep else u
        with device_of(o):
            wkv7_forward_kernel[(launch.pairs, launch.columns)](
                *inputs, state, final, o, u, checkpoints, unsafe, cu_seqlens, launch.tokens, scale,
                **launch.shape, **PRODUCTS, VALUES=launch.config.values, KEEP=keep,
                num_warps=launch.config.forward_warps,
            )  # fmt: skip
            wkv7_exact_forward_kernel[(launch.pairs,)](
                *inputs, state, final, o, checkpoints, unsafe, cu_seqlens, launch.tokens, scale,
                **launch.shape, KEEP=keep, num_warps=launch.config.exact_warps,
            )  # fmt: skip
        if keep:
            ctx.save_for_backward(*inputs, u, checkpoints, unsafe, cu_seqlens)
            ctx.scale = scale
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        *saved, u, checkpoints, unsafe, cu_seqlens = ctx.saved_tensors
        inputs = WkvInputs(*saved)
        launch = _Launch(inputs, d_final.shape[0])
        d_o, d_final = d_o.contiguous(), d_final.contiguous()
        gradients = [torch.empty_like(x) for x in inputs]
        d_initial, dy, d_states = torch.empty_like(d_final), torch.empty_like(u), torch.empty_like(checkpoints)
        with device_of(d_o):
            wkv7_state_gradient_kernel[(launch.pairs, launch.columns)](
                inputs.r, inputs.w, inputs.a, inputs.b, unsafe, cu_seqlens,
                d_o, d_final, dy, d_states, d_initial, launch.tokens, ctx.scale,
                **launch.shape, **PRODUCTS, VALUES=launch.config.values, num_warps=launch.config.state_warps,
            )  # fmt: skip
            wkv7_token_gradients_kernel[(checkpoints.shape[0], inputs.r.shape[2])](
                *inputs, u, checkpoints, unsafe, cu_seqlens, launch.sequence_of_row(cu_seqlens),
                d_o, dy, d_states, *gradients, launch.tokens, ctx.scale,
                **launch.shape, **PRODUCTS, KEYS=launch.config.keys, num_warps=launch.config.token_warps,
            )  # fmt: skip
            wkv7_exact_backward_kernel[(launch.pairs,)](
                *inputs, checkpoints, unsafe, cu_seqlens, d_o, d_final, *gradients, d_initial,
                launch.tokens, ctx.scale, **launch.shape, num_warps=launch.config.exact_warps,
            )  # fmt: skip
        return *gradients, d_initial, None, None, None


class _Launch:
    """What the launches of one call share."""

    def __init__(self, inputs: WkvInputs, sequences: int) -> None:
        batch, length, heads, size = inputs.r.shape
        self.like = inputs.r
        self.sequences = sequences
        self.tokens = batch * length
        self.pairs = sequences * heads
        self.config = WKV7[size]
        self.columns = size // self.config.values
        self.shape = {"H": heads, "D": size, "CHUNK": self.config.chunk}

    def empty_states(self) -> Tensor:
        """Room for one state per chunk: [P, H, K, V]."""
        rows = self.tokens // self.config.chunk + self.sequences
        heads, size = self.like.shape[2:]
        return torch.empty(rows, heads, size, size, dtype=STORED, device=self.like.device)

    def sequence_of_row(self, cu_seqlens: Tensor) -> Tensor:
        """For each row of the checkpoints the sequence it belongs to, int64 [P]."""
        numbers = torch.arange(self.tokens // self.config.chunk + self.sequences, device=cu_seqlens.device)
        first_rows = cu_seqlens[:-1] // self.config.chunk + numbers[: self.sequences]
        return torch.searchsorted(first_rows, numbers, right=True).sub_(1).clamp_(min=0)
