"""The chunk-parallel recurrence under autograd: launches its kernels, then the exact ones for pairs they flagged.

Kept for the backward: the inputs, u (one more tensor like v), one state per span, and T until the first backward.
B batch, T time, H heads, D head size, N sequences, P rows of spans.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arwkv_kernels.arguments import WkvInputs
from arwkv_kernels.triton.configs import PARALLEL, PARALLEL_FEW, PARALLEL_FP32, ParallelConfig
from arwkv_kernels.triton.launch import INTERPRETED, device_of, in_fp32
from arwkv_kernels.triton.parallel.solve import wkv7_solve_kernel
from arwkv_kernels.triton.parallel.tokens import wkv7_output_kernel, wkv7_span_gradients_kernel
from arwkv_kernels.triton.parallel.walks import wkv7_reverse_walk_kernel, wkv7_walk_kernel
from arwkv_kernels.triton.wkv7_exact import wkv7_exact_backward_kernel, wkv7_exact_forward_kernel


class Precision(NamedTuple):
    """That of products over a head's channels, over a chunk's tokens and with T; and of u, dy and states in memory."""

    head: str
    tokens: str
    solving: str
    stored: torch.dtype


# T stays fp32 in memory and tf32 in products: in bf16 it cancels where a key repeats.
HALF = Precision("bf16", "tf32", "tf32", torch.bfloat16)
FP32 = Precision("ieee", "ieee", "ieee", torch.float32)


class WkvInSpans(torch.autograd.Function):
    """`apply(r, w, k, v, a, b, state, cu_seqlens, scale, keep) -> (o, final state)`."""

    @staticmethod
    # Any: autograd's context has no public type; arguments: the six inputs, state, offsets, scale, whether to keep.
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs = WkvInputs(*(x.contiguous() for x in arguments[:6]))
        state, cu_seqlens, scale, keep = arguments[6].contiguous(), *arguments[7:]
        launch = _Launch(inputs, cu_seqlens)
        o, final = torch.empty_like(inputs.v), torch.empty_like(state)
        # A kernel of its own for the output needs what a backward pass needs.
        kept = keep or launch.config.split
        u = torch.empty(inputs.v.shape if kept else 0, dtype=launch.precision.stored, device=o.device)
        states = launch.empty_states() if kept else u
        with device_of(o):
            solve, unsafe = launch.solve(inputs)
            wkv7_walk_kernel[(launch.pairs, launch.columns)](
                *inputs, solve, state, final, o, u, states, unsafe, cu_seqlens, launch.tokens, scale,
                **launch.walk, KEEP=kept, OUTPUT=not launch.config.split,
            )  # fmt: skip
            if launch.config.split:
                wkv7_output_kernel[(launch.rows, launch.heads)](
                    inputs.r, inputs.w, inputs.k, inputs.v, inputs.b, o, u, states, unsafe, cu_seqlens,
                    launch.sequence_of_row, launch.tokens, scale,
                    **launch.tokens_at_once, KEYS=launch.config.output_keys, num_warps=launch.config.output_warps,
                )  # fmt: skip
            wkv7_exact_forward_kernel[(launch.pairs,)](
                *inputs, state, final, o, states, unsafe, cu_seqlens, launch.tokens, scale,
                **launch.exact_shape, KEEP=keep, num_warps=launch.config.exact_warps,
            )  # fmt: skip
        if keep:
            ctx.save_for_backward(*inputs, u, states, unsafe, cu_seqlens)
            ctx.scale, ctx.solve = scale, solve
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        *saved, u, states, unsafe, cu_seqlens = ctx.saved_tensors
        inputs = WkvInputs(*saved)
        launch = _Launch(inputs, cu_seqlens)
        d_o, d_final = d_o.contiguous(), d_final.contiguous()
        d_initial, d_states, dv = torch.empty_like(d_final), torch.empty_like(states), torch.empty_like(inputs.v)
        # dy lies in dv's memory until dv replaces it.
        dy = dv.view(u.dtype) if dv.dtype.itemsize == u.dtype.itemsize else torch.empty_like(u)
        with device_of(d_o):
            # A second backward of a retained graph makes T again; kept until then, it would lie beside the gradients.
            solve, ctx.solve = ctx.solve, None
            if solve is None:
                solve, _ = launch.solve(inputs)
            wkv7_reverse_walk_kernel[(launch.pairs, launch.columns)](
                inputs.r, inputs.w, inputs.a, inputs.b, solve, unsafe, cu_seqlens,
                d_o, d_final, dy, d_states, d_initial, launch.tokens, ctx.scale,
                **launch.walk,
            )  # fmt: skip
            del solve
            # Sums over slices of columns are added up in the gradients themselves.
            summed = torch.float32 if launch.config.gradient_values < launch.size else None
            gradients = [
                dv if n == "v" else torch.empty_like(x, dtype=summed)
                for n, x in zip(inputs._fields, inputs, strict=True)
            ]
            wkv7_span_gradients_kernel[(launch.rows, launch.heads)](
                *inputs, u, states, unsafe, cu_seqlens, launch.sequence_of_row,
                d_o, dy, d_states, *gradients, launch.tokens, ctx.scale,
                **launch.tokens_at_once, KEYS=launch.config.keys, VALUES=launch.config.gradient_values,
                num_warps=launch.config.gradient_warps,
            )  # fmt: skip
            wkv7_exact_backward_kernel[(launch.pairs,)](
                *inputs, states, unsafe, cu_seqlens, d_o, d_final, *gradients, d_initial,
                launch.tokens, ctx.scale, **launch.exact_shape, num_warps=launch.config.exact_warps,
            )  # fmt: skip
        return *(g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True)), d_initial, None, None, None


class _Launch:
    """What the launches of one call share."""

    def __init__(self, inputs: WkvInputs, cu_seqlens: Tensor) -> None:
        batch, length, self.heads, self.size = inputs.r.shape
        sequences = cu_seqlens.numel() - 1
        self.pairs = sequences * self.heads
        self.config = _config(inputs.v, self.pairs)
        self.precision = FP32 if in_fp32(inputs.v) or INTERPRETED else HALF
        self.cu_seqlens = cu_seqlens
        self.tokens = batch * length
        self.columns = self.size // self.config.values
        self.rows = self.tokens // self.config.span + sequences
        # A step of a walk, and the tokens of a span at one time: the kernels' constants and how they are scheduled.
        self.shape = {"H": self.heads, "D": self.size, "SPAN": self.config.span, "OVER_HEAD": self.precision.head}
        products = self.shape | {"OVER_TOKENS": self.precision.tokens, "num_stages": 1}
        self.walk = products | {
            "SOLVING": self.precision.solving, "CHUNK": self.config.chunk, "VALUES": self.config.values,
            "num_warps": self.config.walk_warps,
        }  # fmt: skip
        self.tokens_at_once = products | {"CHUNK": self.config.gradient_chunk}
        self.exact_shape = {"H": self.heads, "D": self.size, "CHUNK": self.config.span}
        numbers = torch.arange(self.rows, device=cu_seqlens.device)
        first_rows = cu_seqlens[:-1] // self.config.span + numbers[:sequences]
        self.sequence_of_row = torch.searchsorted(first_rows, numbers, right=True).sub_(1).clamp_(min=0)

    def empty_states(self) -> Tensor:
        """Room for one state per span: [P, H, V, K] ([P, H, K, V] of pairs that the exact kernels redo)."""
        shape = (self.rows, self.heads, self.size, self.size)
        return torch.empty(shape, dtype=self.precision.stored, device=self.cu_seqlens.device)

    def solve(self, inputs: WkvInputs) -> tuple[Tensor, Tensor]:
        """T of every chunk [P · SPAN / CHUNK, H, CHUNK, CHUNK] in fp32, and which pairs' decays are out of range."""
        chunk = self.config.chunk
        chunks = self.rows * (self.config.span // chunk)
        solve = torch.empty(chunks, self.heads, chunk, chunk, device=inputs.w.device)
        unsafe = torch.zeros(self.pairs, dtype=torch.int32, device=inputs.w.device)
        wkv7_solve_kernel[(chunks, self.heads)](
            inputs.w, inputs.a, inputs.b, solve, unsafe, self.cu_seqlens, self.sequence_of_row, self.tokens,
            **self.shape, CHUNK=chunk, SOLVING=self.precision.solving, num_warps=self.config.solve_warps,
        )  # fmt: skip
        return solve, unsafe


def _config(v: Tensor, pairs: int) -> ParallelConfig:
    """How a call with these values, of so many sequences and heads, is cut and scheduled."""
    size = v.shape[-1]
    if in_fp32(v):
        return PARALLEL_FP32[size]
    programs = pairs * size // PARALLEL[size].values
    return (PARALLEL_FEW if programs < multiprocessors(v.device) else PARALLEL)[size]


def multiprocessors(device: torch.device) -> int:
    """How many programs a GPU runs at least at one time; 0 under the interpreter."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 0
