"""One token through a time mixer on a CPU: the step that decoding repeats, in few calls.

The projections are called as modules, so that wrappers (adapter, quantization, offloading, a hook) work. Everything
between them (value residual, rope, removal, the recurrence, norm, bonus and gate) is one loop over heads that numba
compiles: single operations would take much more time to call than to compute.

Shape legend: B batch, C model width, H receptance heads, G key-value heads, D head size, W = H·D, U = G·D.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from arwkv_kernels.jit import can_compile, compile_loop
from arwkv_student.model.elementwise import LOWEST_LOG_DECAY


def can_step(x_BTC: Tensor) -> bool:
    """Whether `step` can replace the whole mixer: one token on a CPU, without a gradient."""
    return (
        x_BTC.shape[1] == 1
        and x_BTC.device.type == "cpu"
        and x_BTC.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()  # it cannot trace numba's loop
        and can_compile()
    )


def step(
    r_BW: Tensor,
    k_BU: Tensor,
    v_BU: Tensor,
    decay_BW: Tensor,
    iclr_BW: Tensor,
    value_mix_BU: Tensor | None,
    gate_BW: Tensor | None,
    *,
    v_first_BU: Tensor,
    cos_sin_BD: tuple[Tensor, Tensor] | None,
    removal_scale_W: Tensor,
    iclr_scale_W: Tensor | None,
    bonus_HD: Tensor | None,
    norm: nn.GroupNorm | None,
    wkv_BHDD: Tensor,
    slots_B: Tensor | None = None,
    scale: float,
    gate_around_one: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (output [B, W] before its projection, the state after the token), in fp32.

    Takes the outputs of the projections; decay, in-context learning rate and value mix are before their sigmoid. With
    `slots_B`, int64 that differ, `wkv_BHDD` holds the states of many sequences: that of row b is at slots_B[b], and is
    changed in place (see `wkv7_step`).
    """
    from arwkv_kernels.compiled import flat_states, step_pairs  # here: it loads numba

    inputs = (
        *(r_BW, k_BU, v_BU),
        decay_BW.float().sigmoid().mul_(LOWEST_LOG_DECAY).exp_(),
        iclr_BW.float().sigmoid(),
        None if value_mix_BU is None else v_first_BU,
        None if value_mix_BU is None else value_mix_BU.float().sigmoid(),
        *((None, None) if cos_sin_BD is None else cos_sin_BD),
        removal_scale_W,
        iclr_scale_W,
        None if bonus_HD is None else bonus_HD.view(-1),
        gate_BW,
        *((None, None) if norm is None else (norm.weight, norm.bias)),
    )
    y_BW, after, before = torch.empty(r_BW.shape), wkv_BHDD, None
    if slots_B is None:
        after, before = torch.empty_like(wkv_BHDD, memory_format=torch.contiguous_format), _array(wkv_BHDD).reshape(-1)
    slots = np.arange(len(r_BW)) if slots_B is None else slots_B.numpy()
    arrays = [*map(_array, inputs), before, *flat_states(after), slots, y_BW.numpy()]
    arrays += [np.float32(scale), np.float32(gate_around_one)]
    D = wkv_BHDD.shape[-1]
    loop = _loop(D, r_BW.shape[-1] // k_BU.shape[-1], 0.0 if norm is None else norm.eps)
    step_pairs(lambda first, last: loop(*arrays, first, last), r_BW.numel() // D, D)
    return y_BW, after


def _array(x: Tensor | None) -> Any:  # an array, or None for a part that the mixer lacks
    return None if x is None else x.detach().float().contiguous().numpy()


@functools.cache
def _loop(head_dim: int, repeats: int, norm_eps: float) -> Callable[..., None]:
    """The loop for one head size, over the pairs (row, head) first..last-1.

    numba compiles it for each set of parts that exist (the others are None).
    """
    from numba import carray

    from arwkv_kernels.loops.intrinsics import stack_space

    D, half, square = head_dim, head_dim // 2, head_dim * head_dim
    one, tiny, D32, eps = np.float32(1.0), np.float32(1e-12), np.float32(D), np.float32(norm_eps)

    def loop(  # type: ignore[no-untyped-def]  # compiled by numba
        r, k, v, decay, iclr, v_first, value_mix, cos, sin, removal_scale, iclr_scale, bonus, gate,
        norm_weight, norm_bias, before, states, stride, slots, y, scale, gate_offset, first, last,
    ):  # fmt: skip
        # On the stack, because LLVM must know that they do not overlap.
        r_D, k_D = carray(stack_space(D, y), (D,)), carray(stack_space(D, y), (D,))
        v_D, a_D = carray(stack_space(D, y), (D,)), carray(stack_space(D, y), (D,))
        b_D, u_D = carray(stack_space(D, y), (D,)), carray(stack_space(D, y), (D,))
        y_D = carray(stack_space(D, y), (D,))
        heads = r.shape[1] // D
        for pair in range(first, last):
            n, h = pair // heads, pair % heads
            W, U = h * D, (h // repeats) * D
            begin = slots[n] * stride + h * square
            S = states[begin : begin + square]
            if before is not None:
                for q in range(square):
                    S[q] = before[begin + q]
            for i in range(D):
                r_D[i], k_D[i], v_D[i] = r[n, W + i], k[n, U + i], v[n, U + i]
            if value_mix is not None:
                for i in range(D):
                    v_D[i] += (v_first[n, U + i] - v_D[i]) * value_mix[n, U + i]
            if cos is not None:
                for i in range(half):
                    low, high = r_D[i], r_D[i + half]
                    r_D[i] = low * cos[n, i] - high * sin[n, i]
                    r_D[i + half] = high * cos[n, i + half] + low * sin[n, i + half]
                    low, high = k_D[i], k_D[i + half]
                    k_D[i] = low * cos[n, i] - high * sin[n, i]
                    k_D[i + half] = high * cos[n, i + half] + low * sin[n, i + half]
            length = np.float32(0.0)
            for i in range(D):
                a_D[i] = k_D[i] * removal_scale[W + i]
                length += a_D[i] * a_D[i]
            inverse = one / max(np.sqrt(length), tiny)
            for i in range(D):
                a_D[i] *= -inverse
                b_D[i] = -a_D[i] * iclr[n, W + i]
            if iclr_scale is None:
                for i in range(D):
                    k_D[i] *= one - decay[n, W + i] + iclr[n, W + i]
            else:
                for i in range(D):
                    k_D[i] *= one + (iclr[n, W + i] - one) * iclr_scale[W + i]
            for j in range(D):
                u_D[j], y_D[j] = 0, 0
            for i in range(D):
                a_i = a_D[i]
                for j in range(D):
                    u_D[j] += a_i * S[i * D + j]
            for i in range(D):
                w_i, b_i, k_i, r_i = decay[n, W + i], b_D[i], k_D[i], r_D[i]
                for j in range(D):
                    s = w_i * S[i * D + j] + b_i * u_D[j] + k_i * v_D[j]
                    S[i * D + j] = s
                    y_D[j] += r_i * s
            own = np.float32(0.0)
            if bonus is not None:
                for i in range(D):
                    own += r_D[i] * k_D[i] * bonus[W + i]
            for j in range(D):
                y_D[j] *= scale
            if norm_weight is not None:
                mean, variance = np.float32(0.0), np.float32(0.0)
                for j in range(D):
                    mean += y_D[j] / D32
                for j in range(D):
                    variance += (y_D[j] - mean) * (y_D[j] - mean) / D32
                inverse = one / np.sqrt(variance + eps)
                for j in range(D):
                    y_D[j] = (y_D[j] - mean) * inverse * norm_weight[W + j] + norm_bias[W + j]
            for j in range(D):
                y_D[j] += own * v_D[j]
            if gate is None:
                for j in range(D):
                    y[n, W + j] = y_D[j]
            else:
                for j in range(D):
                    y[n, W + j] = y_D[j] * (gate_offset + gate[n, W + j])

    return compile_loop(loop)
