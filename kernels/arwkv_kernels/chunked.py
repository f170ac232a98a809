"""The recurrence in chunks of C tokens, in plain torch: matrix products within a chunk, a small step between chunks.

With g the running sum of log decays inside a chunk, token i reads what token j < i wrote through exp(g_i - g_j). The
products factor that as exp(g_i - m)·exp(m - g_j), centred on the chunk's middle m so that neither factor overflows. The
corrections u_i = a_iᵀ S_{i-1} solve a unit lower-triangular system (the WY form: Yang et al., arXiv 2406.06484,
extended to diagonal decay as in RWKV-7, arXiv 2503.14456, appendix).

B batch, T time, H heads, D head size, G = B·H, M chunks, C tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from arwkv_kernels.arguments import WkvInputs
from arwkv_kernels.reference import wkv7_recurrence

CHUNK = 32
# exp(±30) leaves fp32 room for the products of two factors; RWKV-7's own decays (w > -0.607) need ±10.
LARGEST_CENTRED_EXPONENT = 30.0


def chunk_for(lowest_w: float) -> int | None:
    """The largest chunk whose centred factors stay finite in fp32, or None if only the loop is safe."""
    return next((c for c in (CHUNK, 16) if -lowest_w * c / 2 <= LARGEST_CENTRED_EXPONENT), None)


def wkv7_chunked(
    inputs: WkvInputs, state_NHKV: Tensor, offsets: list[int] | None, scale: float, lowest_w: float, chunk: int = 0
) -> tuple[Tensor, Tensor]:
    """Chunked if the lowest log decay allows it, else the loop. Inputs and state have one dtype.

    `chunk` forces a chunk size. Returns (o, final state).
    """
    size = chunk or chunk_for(lowest_w)
    run: Callable[[WkvInputs, Tensor, float], tuple[Tensor, Tensor]] = wkv7_recurrence
    if size is not None:
        tokens = size

        def run(inputs: WkvInputs, state: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            return _batch_in_chunks(inputs, state, scale, tokens)

    if offsets is None:
        return run(inputs, state_NHKV, scale)
    padded, real_NT = _unpack(inputs, offsets)
    o_NTHD, state_NHKV = run(padded, state_NHKV, scale)
    return o_NTHD[real_NT].unsqueeze(0), state_NHKV


def _unpack(inputs: WkvInputs, offsets: list[int]) -> tuple[WkvInputs, Tensor]:
    """Packed [1, T, H, D] to one padded row per sequence. All-zero padding does not change a state."""
    device = inputs.r.device
    bounds = torch.tensor(offsets, device=device)
    lengths_N = bounds.diff()
    steps = torch.arange(int(lengths_N.max()), device=device)
    real_NT = steps < lengths_N[:, None]
    places_NT = torch.where(real_NT, bounds[:-1, None] + steps, 0)
    padded = (torch.where(real_NT[..., None, None], x[0][places_NT], 0.0) for x in inputs)
    return WkvInputs(*padded), real_NT


class _Chunks(NamedTuple):
    """The contribution of each chunk, given the state S before it: o = own + read·S and S' = keep⊙S + move·S + add."""

    own_MGCV: Tensor
    read_MGCK: Tensor
    keep_MGK1: Tensor
    move_MGKK: Tensor
    add_MGKV: Tensor


def _batch_in_chunks(inputs: WkvInputs, state_BHKV: Tensor, scale: float, chunk: int) -> tuple[Tensor, Tensor]:
    B, T, H, D = inputs.r.shape
    M = -(-T // chunk)

    def split(x_BTHD: Tensor) -> Tensor:
        x_BTHD = F.pad(x_BTHD, (0, 0, 0, 0, 0, M * chunk - T))
        return x_BTHD.view(B, M, chunk, H, D).permute(1, 0, 3, 2, 4).reshape(M, B * H, chunk, D)

    parts = _contributions(WkvInputs(*(split(x) for x in inputs)))
    state_GKV = state_BHKV.reshape(B * H, D, D)
    before = []
    for keep_GK1, move_GKK, add_GKV in zip(parts.keep_MGK1, parts.move_MGKK, parts.add_MGKV, strict=True):
        before.append(state_GKV)
        state_GKV = torch.baddbmm(torch.addcmul(add_GKV, keep_GK1, state_GKV), move_GKK, state_GKV)
    o_MGCV = parts.own_MGCV
    if before:
        o_MGCV = o_MGCV + parts.read_MGCK @ torch.stack(before)
    o_BTHD = o_MGCV.view(M, B, H, chunk, D).permute(1, 0, 3, 2, 4).reshape(B, M * chunk, H, D)[:, :T]
    return o_BTHD * scale, state_GKV.view(B, H, D, D)


def _contributions(inputs: WkvInputs) -> _Chunks:
    """Everything that does not depend on the state, for all chunks at once; inputs [M, G, C, D]."""
    r, w, k, v, a, b = inputs
    C, D = r.shape[-2:]
    g = w.cumsum(-2)
    before = g - w
    middle, last = g[..., C // 2 : C // 2 + 1, :], g[..., -1:, :]
    towards, away = (middle - g).exp(), (g - middle).exp()
    reads = torch.cat([r * away, a * (before - middle).exp()], dim=-2)
    writes = torch.cat([k * towards, b * towards], dim=-2)
    pairs = reads @ writes.mT
    r_k, r_b = pairs[..., :C, :C].tril(), pairs[..., :C, C:].tril()
    a_k, a_b = pairs[..., C:, :C].tril(-1), pairs[..., C:, C:].tril(-1)
    known = torch.cat([a_k @ v, a * before.exp()], dim=-1)
    one = torch.eye(C, dtype=r.dtype, device=r.device)
    solved = torch.linalg.solve_triangular(one - a_b, known, upper=False, unitriangular=True)
    u_own, u_read = solved[..., :D], solved[..., D:]
    to_end = (last - g).exp()
    k_end, b_end = (k * to_end).mT, (b * to_end).mT
    return _Chunks(
        own_MGCV=r_k @ v + r_b @ u_own,
        read_MGCK=r * g.exp() + r_b @ u_read,
        keep_MGK1=last.exp().mT,
        move_MGKK=b_end @ u_read,
        add_MGKV=k_end @ v + b_end @ u_own,
    )
