"""One token through a time mixer on a CPU: what decoding repeats, in as few calls as it takes.

The projections stay torch's; what lies between them (value residual, rope, removal, the recurrence, bonus and gate) is
one loop over heads that numba compiles: as single operations, calling them costs many times their arithmetic.

Shape legend: B batch, C model width, H receptance heads, G key-value heads, D head size, W = H·D, U = G·D.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

try:
    import numba
except ImportError:
    numba = None

from arwkv_student.model.elementwise import LOWEST_LOG_DECAY

if TYPE_CHECKING:
    from arwkv_student.model.time_mix import TimeMix

# As in the recurrence over whole sequences: sums may be reordered, NaN keeps its meaning.
FAST = {"reassoc", "contract", "nsz", "arcp"}


def can_step(mixer: "TimeMix", x_BTC: Tensor) -> bool:
    """Whether `step` gives what the mixer would: one token on a CPU, and no gradient."""
    return (
        x_BTC.shape[1] == 1
        and x_BTC.device.type == "cpu"
        and x_BTC.dtype in (torch.float32, torch.bfloat16)
        and not torch.is_grad_enabled()
        and mixer.options.output_norm == "none"
        and numba is not None
    )


def step(
    mixer: "TimeMix",
    x_BC: Tensor,
    v_first_BU: Tensor | None,
    cos_sin_BD: tuple[Tensor, Tensor] | None,
    last_input_BC: Tensor,
    wkv_BHDD: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (output [B, C], the first mixer's value [B, U], the state after the token)."""
    options = mixer.options
    x_r, x_w, x_k, x_v, x_a, x_g = (
        torch.addcmul(x_BC, last_input_BC.to(x_BC.dtype) - x_BC, mixer.shift_mix[:, None].to(x_BC.dtype)).unbind(0)
        if options.token_shift
        else (x_BC,) * 6
    )
    r, k, v = mixer.receptance(x_r), mixer.key(x_k), mixer.value(x_v)
    mixes_value = v_first_BU is not None and options.value_residual != "none"
    inputs = (
        *(r, k, v),
        mixer.decay(x_w).sigmoid_().mul_(LOWEST_LOG_DECAY).exp_(),
        mixer.rate(x_a).sigmoid_(),
        v_first_BU if mixes_value else None,
        mixer.value_mix(x_v).sigmoid_() if mixes_value else None,
        *(cos_sin_BD if options.rope and cos_sin_BD is not None else (None, None)),
        mixer.removal_scale,
        None if options.state_balancing else mixer.rate_scale,
        mixer.bonus.view(-1) if options.bonus else None,
        mixer.gate(x_g) if options.gate != "none" else None,
    )
    after, y_BW = (
        torch.empty_like(wkv_BHDD, memory_format=torch.contiguous_format),
        torch.empty_like(r, dtype=torch.float32),
    )
    scale = options.head_dim**-0.5 if options.state_balancing else 1.0
    _loop(options.head_dim, options.num_heads // options.num_key_value_heads)(
        *map(_array, inputs),
        _array(wkv_BHDD),
        after.numpy(),
        y_BW.numpy(),
        np.float32(scale),
        np.float32(options.gate == "residual"),
    )
    return mixer.output(y_BW.to(x_BC.dtype)), v if v_first_BU is None else v_first_BU, after


def _array(x: Tensor | None) -> Any:  # an array, or None for a part that the mixer lacks
    return None if x is None else x.detach().float().contiguous().numpy()


@functools.cache
def _loop(head_dim: int, repeats: int) -> Callable[..., None]:
    """The loop for one head size. numba compiles it for each set of parts that are there (the others are None)."""
    D, half = head_dim, head_dim // 2
    one, tiny = np.float32(1.0), np.float32(1e-12)

    def loop(  # type: ignore[no-untyped-def]  # compiled by numba
        r, k, v, decay, rate, v_first, value_mix, cos, sin, removal_scale, rate_scale, bonus, gate,
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
                b_D[i] = -a_D[i] * rate[n, W + i]
            if rate_scale is None:
                for i in range(D):
                    k_D[i] *= one - decay[n, W + i] + rate[n, W + i]
            else:
                for i in range(D):
                    k_D[i] *= one + (rate[n, W + i] - one) * rate_scale[W + i]
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

    try:
        compiled: Callable[..., None] = numba.njit(loop, cache=True, nogil=True, fastmath=FAST, error_model="numpy")
    except RuntimeError:  # numba found no folder to write to
        compiled = numba.njit(loop, nogil=True, fastmath=FAST, error_model="numpy")
    return compiled
