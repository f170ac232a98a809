"""One token through a time mixer on a CPU: the step that decoding repeats, in few calls.

The projections are called as modules, so that wrappers (adapter, quantization, offloading, a hook) work. Everything
between them (value residual, rope, removal, the recurrence, bonus and gate) is one loop over heads that numba compiles:
single operations would take much more time to call than to compute.

Shape legend: B batch, C model width, H receptance heads, G key-value heads, D head size, W = H·D, U = G·D.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from arwkv_kernels.jit import can_compile, compile_loop
from arwkv_student.model.elementwise import LOWEST_LOG_DECAY
from arwkv_student.model.time_mix_options import TimeMixOptions


def can_step(x_BTC: Tensor, options: TimeMixOptions) -> bool:
    """Whether `step` can replace the whole mixer: one token on a CPU, without a gradient."""
    return (
        x_BTC.shape[1] == 1
        and x_BTC.device.type == "cpu"
        and x_BTC.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and options.output_norm == "none"
        and can_compile()
        and not torch.compiler.is_compiling()  # it cannot trace numba's loop
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
    wkv_BHDD: Tensor,
    scale: float,
    gate_around_one: bool,
) -> tuple[Tensor, Tensor]:
    """Returns (output [B, W] before its projection, the state after the token), in fp32.

    Takes the outputs of the projections; decay, in-context learning rate and value mix are before their sigmoid.
    """
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
        wkv_BHDD,
    )
    after, y_BW = torch.empty_like(wkv_BHDD, memory_format=torch.contiguous_format), torch.empty(r_BW.shape)
    _loop(wkv_BHDD.shape[-1], r_BW.shape[-1] // k_BU.shape[-1])(
        *map(_array, inputs), after.numpy(), y_BW.numpy(), np.float32(scale), np.float32(gate_around_one)
    )
    return y_BW, after


def _array(x: Tensor | None) -> Any:  # an array, or None for a part that the mixer lacks
    return None if x is None else x.detach().float().contiguous().numpy()


@functools.cache
def _loop(head_dim: int, repeats: int) -> Callable[..., None]:
    """The loop for one head size. numba compiles it for each set of parts that exist (the others are None)."""
    D, half = head_dim, head_dim // 2
    one, tiny = np.float32(1.0), np.float32(1e-12)

    def loop(  # type: ignore[no-untyped-def]  # compiled by numba
        r, k, v, decay, iclr, v_first, value_mix, cos, sin, removal_scale, iclr_scale, bonus, gate,
        before, after, y, scale, gate_offset,
    ):  # fmt: skip
        r_D, k_D, v_D = np.empty(D, np.float32), np.empty(D, np.float32), np.empty(D, np.float32)
        a_D, b_D = np.empty(D, np.float32), np.empty(D, np.float32)
        u_D, y_D = np.empty(D, np.float32), np.empty(D, np.float32)
        heads = before.shape[1]
        for pair in range(before.shape[0] * heads):
            n, h = pair // heads, pair % heads
            W, U = h * D, (h // repeats) * D
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
            square = np.float32(0.0)
            for i in range(D):
                a_D[i] = k_D[i] * removal_scale[W + i]
                square += a_D[i] * a_D[i]
            inverse = one / max(np.sqrt(square), tiny)
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
                    u_D[j] += a_i * before[n, h, i, j]
            for i in range(D):
                w_i, b_i, k_i, r_i = decay[n, W + i], b_D[i], k_D[i], r_D[i]
                for j in range(D):
                    s = w_i * before[n, h, i, j] + b_i * u_D[j] + k_i * v_D[j]
                    after[n, h, i, j] = s
                    y_D[j] += r_i * s
            own = np.float32(0.0)
            if bonus is not None:
                for i in range(D):
                    own += r_D[i] * k_D[i] * bonus[W + i]
            for j in range(D):
                y_D[j] = scale * y_D[j] + own * v_D[j]
            if gate is None:
                for j in range(D):
                    y[n, W + j] = y_D[j]
            else:
                for j in range(D):
                    y[n, W + j] = y_D[j] * (gate_offset + gate[n, W + j])

    return compile_loop(loop)
