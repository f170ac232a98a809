"""The element-wise parts of a time mixer, around the recurrence: pure functions, so that one kernel can do each.

Memory bandwidth limits these operations, and each eager operation reads and writes its tensors again. `fused` compiles
them with torch.compile into one kernel for each direction; `benchmarks/kernels.py` measures the gain on a machine.

Shape legend: B batch, T time, C model width, H receptance heads, G key-value heads, D head size, W = H·D, U = G·D.
"""

import functools
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

log = logging.getLogger(__name__)

MOST_VARIANTS = 64
"""Shapes (and types) of one function's arguments that are compiled; each takes seconds."""
LOWEST_LOG_DECAY = -math.exp(-0.5)


def shifted(x_BTC: Tensor, previous_BTC: Tensor, shift_mix_6C: Tensor) -> tuple[Tensor, ...]:
    """The six inputs x + (x₋₁ − x)⊙μ [B, T, C] for r, w, k, v, a, g."""
    difference = previous_BTC - x_BTC
    if not torch.is_grad_enabled():  # one call for all; with a gradient, six calls take less time and memory
        return tuple(torch.addcmul(x_BTC, difference, shift_mix_6C.to(x_BTC.dtype)[:, None, None]))
    return tuple(torch.addcmul(x_BTC, difference, mix_C.to(x_BTC.dtype)) for mix_C in shift_mix_6C)


def recurrence_inputs(
    r_BTW: Tensor,
    k_BTU: Tensor,
    v_BTU: Tensor,
    decay_BTW: Tensor,
    iclr_BTW: Tensor,
    v_first_BTU: Tensor | None,
    value_mix_BTU: Tensor | None,
    cos_sin_BTD: tuple[Tensor, Tensor] | None,
    mask_BT1: Tensor | None,
    removal_scale_W: Tensor,
    iclr_scale_W: Tensor | None,
    *,
    head_dim: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """r, w, k̃, v, −κ̂ and κ̂⊙a of RWKV-7 (arXiv 2503.14456), each [B, T, H, D], from the projections.

    Computed in fp32 and returned in `dtype`, except the log decay w, which stays fp32. `value_mix_BTU` (before its
    sigmoid) mixes `v_first_BTU` into the value; without it the value stays. Without `iclr_scale_W` the key is balanced
    against the decay (arXiv 2505.03005). Padding (mask 0) decays nothing, removes nothing and adds nothing.
    """
    D = head_dim
    log_decay = _heads(LOWEST_LOG_DECAY * torch.sigmoid(decay_BTW.float()), D)
    iclr = _heads(torch.sigmoid(iclr_BTW.float()), D)
    if value_mix_BTU is not None and v_first_BTU is not None:
        v_BTU = torch.lerp(v_BTU.float(), v_first_BTU.float(), torch.sigmoid(value_mix_BTU))
    r, k, v = (_heads(y.float(), D) for y in (r_BTW, k_BTU, v_BTU))
    if cos_sin_BTD is not None:
        from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

        r, k = apply_rotary_pos_emb(r, k, *(y.float() for y in cos_sin_BTD), unsqueeze_dim=2)
    repeats = r.shape[2] // k.shape[2]
    if repeats > 1:
        k, v = k.repeat_interleave(repeats, dim=2), v.repeat_interleave(repeats, dim=2)
    removal = F.normalize(k * _heads(removal_scale_W.float(), D), dim=-1)
    if iclr_scale_W is None:
        k = k * (1.0 - log_decay.exp() + iclr)
    else:
        k = k * (1.0 + (iclr - 1.0) * _heads(iclr_scale_W.float(), D))
    iclr = removal * iclr
    if mask_BT1 is not None:
        keep = mask_BT1[..., None].to(k.dtype)
        log_decay, k, iclr = log_decay * keep, k * keep, iclr * keep
    r, k, v, minus_removal, iclr = (y.to(dtype).contiguous() for y in (r, k, v, -removal, iclr))
    return r, log_decay.contiguous(), k, v, minus_removal, iclr


def mixed_output(
    y_BTHD: Tensor,
    r_BTHD: Tensor,
    k_BTHD: Tensor,
    v_BTHD: Tensor,
    bonus_HD: Tensor | None,
    gate_BTW: Tensor | None,
    *,
    gate_around_one: bool,
) -> Tensor:
    """The recurrence's output [B, T, W] after the bonus and the gate, in fp32."""
    y_BTHD = y_BTHD.float()
    if bonus_HD is not None:
        y_BTHD = y_BTHD + (r_BTHD.float() * k_BTHD * bonus_HD.float()).sum(-1, keepdim=True) * v_BTHD
    y_BTW = y_BTHD.flatten(-2)
    if gate_BTW is not None:
        y_BTW = y_BTW * (1.0 + gate_BTW if gate_around_one else gate_BTW)
    return y_BTW


@functools.cache
def fused(function: Any) -> Any:
    """A function through torch.compile, once per shape: kernels for all shapes are slower than eager.

    Modules among its arguments share what was compiled where their parameters are alike. After MOST_VARIANTS variants,
    others run eagerly, and a warning says so once.
    """
    # torch.compile's own limit is 8, after which it runs everything new eagerly and says nothing.
    dynamo = torch._dynamo.config
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * MOST_VARIANTS)
    compiled: Any = torch.compile(function, dynamic=False)
    variants: set[Any] = set()

    def run(*arguments: Any, **options: Any) -> Any:
        variant = (torch.is_grad_enabled(), *map(_kind, arguments), *options.values())
        if variant not in variants and len(variants) == MOST_VARIANTS:
            _say_once(function.__name__)
            return function(*arguments, **options)
        variants.add(variant)
        return compiled(*arguments, **options)

    return run


@functools.cache
def _say_once(name: str) -> None:
    log.warning(
        "--fuse: %s was compiled for %d shapes of batches; others run eagerly, which is slower: use fewer lengths (one "
        "--context) or one batch size",
        name,
        MOST_VARIANTS,
    )


def _kind(argument: Any) -> Any:
    """What torch.compile compiles anew for."""
    if isinstance(argument, nn.Module):
        argument = tuple(argument.parameters())
    if isinstance(argument, tuple):
        return tuple(map(_kind, argument))
    return (argument.shape, argument.dtype, argument.requires_grad) if isinstance(argument, Tensor) else argument


def _heads(y: Tensor, head_dim: int) -> Tensor:
    return y.view(*y.shape[:-1], -1, head_dim)
