"""Causal attention on a CPU in bf16, by matrix products over blocks of queries.

torch's fused attention for a CPU runs its bf16 products at a third of the speed of others, and backward slower still.
Where the processor has matrix units (AMX), torch's forward pass uses them and is the faster one, so it does that part.
Elsewhere scores are products in bf16 whose softmax is taken in fp32, as in the `eager` attention of transformers, for
one block of queries at a time and without the keys that come after the block.

Shape legend: B batch, H query heads, K key-value heads, G query heads of one of them, T time, D head width; N = B * K;
Q queries of a block, S keys of a block.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

QUERIES = 64
"""Of a block. Of 64, 128, 256 and 512 the fastest at 128 to 2,048 tokens."""


def blocked_attention(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v over the keys up to each query, with gradients: [B, H, T, D] in the inputs' dtype.

    H is a multiple of K; neighbouring heads share keys.
    """
    o_BHTD: Tensor = _Blocked.apply(q_BHTD, k_BKTD, v_BKTD, scale)  # type: ignore[no-untyped-call] # torch's
    return o_BHTD


class _Blocked(torch.autograd.Function):
    """Keeps its inputs alone; the backward pass makes the probabilities again."""

    @staticmethod
    def forward(ctx: Any, q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q_BHTD, k_BKTD, v_BKTD)
        ctx.scale = scale
        if _has_matrix_units():
            shared = q_BHTD.shape[1] != k_BKTD.shape[1]
            return scaled_dot_product_attention(q_BHTD, k_BKTD, v_BKTD, is_causal=True, scale=scale, enable_gqa=shared)
        q_NGTD, k_NTD, v_NTD = _by_key_head(q_BHTD, k_BKTD, v_BKTD, scale)
        T, o_NGTD = k_NTD.shape[1], torch.empty_like(q_NGTD)
        for first in range(0, T, QUERIES):
            queries, seen = slice(first, first + QUERIES), slice(min(first + QUERIES, T))
            p_NGQS = _probabilities(q_NGTD[:, :, queries], k_NTD[:, seen])
            o_NGTD[:, :, queries] = _times(p_NGQS, v_NTD[:, seen])
        return o_NGTD.view(q_BHTD.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, do_BHTD: Tensor) -> tuple[Tensor | None, ...]:
        q_BHTD, k_BKTD, v_BKTD = ctx.saved_tensors
        q_NGTD, k_NTD, v_NTD = _by_key_head(q_BHTD, k_BKTD, v_BKTD, ctx.scale)
        do_NGTD, dq_NGTD = do_BHTD.reshape(q_NGTD.shape), torch.empty_like(q_NGTD)
        T = k_NTD.shape[1]
        dk_NTD, dv_NTD = (torch.zeros_like(x, dtype=torch.float32) for x in (k_NTD, v_NTD))
        for first in range(0, T, QUERIES):
            queries, seen = slice(first, first + QUERIES), slice(min(first + QUERIES, T))
            q_NGQD, do_NGQD = q_NGTD[:, :, queries], do_NGTD[:, :, queries]
            p_NGQS = _probabilities(q_NGQD, k_NTD[:, seen])
            dv_NTD[:, seen] += _summed(p_NGQS, do_NGQD)
            dp_NGQS = _times(do_NGQD, v_NTD[:, seen].transpose(1, 2))
            ds_NGQS = torch._softmax_backward_data(dp_NGQS, p_NGQS, -1, p_NGQS.dtype)
            dq_NGTD[:, :, queries] = _times(ds_NGQS, k_NTD[:, seen])
            dk_NTD[:, seen] += _summed(ds_NGQS, q_NGQD)
        dk_BKTD, dv_BKTD = (x.to(k_BKTD.dtype).view(k_BKTD.shape) for x in (dk_NTD, dv_NTD))
        return (dq_NGTD * ctx.scale).view(q_BHTD.shape), dk_BKTD, dv_BKTD, None


@functools.cache
def _has_matrix_units() -> bool:
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def _by_key_head(q_BHTD: Tensor, k_BKTD: Tensor, v_BKTD: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled queries [N, G, T, D], keys and values [N, T, D]."""
    B, K, T, D = k_BKTD.shape
    return (q_BHTD * scale).reshape(B * K, -1, T, D), k_BKTD.reshape(B * K, T, D), v_BKTD.reshape(B * K, T, D)


def _probabilities(q_NGQD: Tensor, k_NSD: Tensor) -> Tensor:
    """[N, G, Q, S] of scaled queries and keys, the last of which is the last query's."""
    s_NGQS = _times(q_NGQD, k_NSD.transpose(1, 2))
    Q, S = s_NGQS.shape[2:]
    s_NGQS[..., S - Q :] += torch.full((Q, Q), -torch.inf, dtype=s_NGQS.dtype).triu_(1)
    return torch._softmax(s_NGQS, -1, False)  # sums in fp32; `softmax` itself would cast to fp32 under autocast


def _times(x_NGQS: Tensor, y_NSD: Tensor) -> Tensor:
    """x y for the G heads that share y: [N, G, Q, D]."""
    return torch.bmm(x_NGQS.flatten(1, 2), y_NSD).view(*x_NGQS.shape[:3], y_NSD.shape[2])


def _summed(x_NGQS: Tensor, y_NGQD: Tensor) -> Tensor:
    """xᵀ y, summed over queries and heads: [N, S, D]."""
    return torch.bmm(x_NGQS.flatten(1, 2).transpose(1, 2), y_NGQD.flatten(1, 2))
