"""KL(teacher ‖ student) where the student is `hidden @ weightᵀ` and the teacher is sparse; never [T, V] at once.

The gradient is computed in the forward pass, a chunk of tokens at a time (the idea of Liger-Kernel, arXiv 2410.10989),
so backward only scales it. Teacher and student are distributions over the K stored candidates S and, with
tail="bucket", one more outcome: everything else. The student's share of it comes from a log-sum-exp over the vocabulary
with S masked out, because 1 - Σ_S q cancels for a confident student. With z the logits, p and q the two (softened)
distributions, P = Σ p over the terms of the loss and τ the temperature:

    dL/dz_j = (P q_j - p_j) / τ  for j in S;    (P q_tail - p_tail) / τ · exp(z_j - logsumexp_{i∉S} z_i)  elsewhere

C model width, V vocabulary, T positions, t positions of a chunk, K candidates.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from arwkv_kernels.arguments import compute_dtype, wants_gradient
from arwkv_kernels.backends import backend_for
from arwkv_kernels.head_product import accumulate_weight_gradient, blocks, gradient_dtype, head_logits, times_head
from arwkv_kernels.sparse_teacher import TAILS, ChunkSettings, SparseTeacher, TeacherChunk, soften

REDUCTIONS = ("mean", "sum", "none")
# fp32 logits held at once: 16 MiB stays near a CPU's caches, 512 MiB keeps a GPU's matrix units busy.
LOGITS_PER_CHUNK_CPU = 4 << 20
LOGITS_PER_CHUNK_GPU = 128 << 20


def linear_sparse_kl(
    hidden: Tensor,
    weight: Tensor,
    ids: Tensor,
    logprobs: Tensor,
    counts: Tensor,
    tail_logprob: Tensor,
    *,
    tail: str = "bucket",
    temperature: float = 1.0,
    mask: Tensor | None = None,
    token_chunk: int | None = None,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """Forward KL in nats from sparse teacher distributions to `softmax(hidden @ weightᵀ)`, in fp32.

    hidden [T, C] and weight [V, C] in fp32, bf16, fp16 or fp64 (pass `weight[:vocabulary]` if the head has padded rows;
    a weight that needs no gradient costs none). Position t's teacher: the next `counts[t]` entries of ids [N] and
    logprobs [N], and tail_logprob[t] = log of the mass left over (-inf if none). A position with neither has loss 0.

    tail: "bucket" compares the left-over mass as one more outcome; "renormalize" compares the two distributions
    restricted to the candidates; "drop" is "bucket" without the tail's own term.
    temperature: softens these outcomes of teacher and student (p^(1/τ), normalized); no τ² factor.
    mask: [T] bool, True if a position counts. reduction: "mean" over the positions that count, "sum", or "none"
    ([T], zero where masked; the weight must then be frozen). token_chunk: positions whose logits exist at one time.

    backend: "torch", or "triton" for the passes over the logits; see `backend_for`.

    Raises ValueError for shapes that disagree, unknown ids, or an id given twice at one position.
    """
    _check(hidden, weight, tail, temperature, mask, token_chunk, reduction)
    teacher = SparseTeacher(ids, logprobs, counts, tail_logprob)
    teacher.check(weight.shape[0], hidden.shape)
    positions = torch.arange(hidden.shape[0], device=hidden.device) if mask is None else mask.nonzero().flatten()
    choice = backend_for(hidden, backend=backend, operation="linear_sparse_kl")
    token_chunk = token_chunk or _default_token_chunk(hidden, weight)
    settings = ChunkSettings(positions, token_chunk, tail, temperature, in_triton=choice.name == "triton")
    with torch.autocast(hidden.device.type, enabled=False):
        loss: Tensor = _LinearSparseKl.apply(  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
            hidden, weight, teacher, settings, reduction, wants_gradient(hidden), wants_gradient(weight)
        )
    return loss


def _check(
    hidden: Tensor,
    weight: Tensor,
    tail: str,
    temperature: float,
    mask: Tensor | None,
    token_chunk: int | None,
    reduction: str,
) -> None:
    if tail not in TAILS:
        raise ValueError(f'linear_sparse_kl: tail "{tail}" is not known; choose one of {", ".join(TAILS)}')
    if reduction not in REDUCTIONS:
        raise ValueError(
            f'linear_sparse_kl: reduction "{reduction}" is not known; choose one of {", ".join(REDUCTIONS)}'
        )
    if not temperature > 0 or (token_chunk is not None and token_chunk < 1):
        raise ValueError(
            f"linear_sparse_kl: temperature={temperature} token_chunk={token_chunk}; both must be positive"
        )
    if weight.dim() != 2 or hidden.dim() != 2 or hidden.shape[1] != weight.shape[1]:
        raise ValueError(
            f"linear_sparse_kl: hidden {tuple(hidden.shape)}, weight {tuple(weight.shape)}; expected [T, C], [V, C]"
        )
    if reduction == "none" and wants_gradient(weight):
        raise ValueError('linear_sparse_kl: reduction="none" cannot train the head; use "mean" or weight.detach()')
    if mask is not None and (mask.dtype != torch.bool or mask.shape != hidden.shape[:1]):
        raise ValueError(f"linear_sparse_kl: mask is {mask.dtype} {tuple(mask.shape)}; pass bool [{hidden.shape[0]}]")


def _default_token_chunk(hidden: Tensor, weight: Tensor) -> int:
    budget, most = (LOGITS_PER_CHUNK_GPU, 8192) if hidden.is_cuda else (LOGITS_PER_CHUNK_CPU, 1024)
    return min(most, max(16, budget // weight.shape[0]))


class _LinearSparseKl(torch.autograd.Function):
    @staticmethod
    # Any: autograd's context has no public type; both methods' signatures are fixed by autograd.
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        teacher: SparseTeacher,
        settings: ChunkSettings,
        reduction: str,
        learns_hidden: bool,
        learns_weight: bool,
    ) -> Tensor:
        dtype = compute_dtype(hidden.dtype)
        losses_T = torch.zeros(hidden.shape[0], dtype=dtype, device=hidden.device)
        d_hidden = torch.zeros_like(hidden, dtype=dtype) if learns_hidden else None
        d_weight = torch.zeros_like(weight, dtype=dtype) if learns_weight else None
        _accumulate(hidden.detach(), weight.detach(), teacher, settings, losses_T, d_hidden, d_weight)
        ctx.save_for_backward(d_hidden, d_weight)
        ctx.share = 1.0 / max(1, settings.positions.numel()) if reduction == "mean" else 1.0
        ctx.dtypes = hidden.dtype, weight.dtype
        return losses_T if reduction == "none" else losses_T.sum() * ctx.share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        scale = d_loss * ctx.share
        per_row = scale[:, None] if scale.dim() else scale
        return (
            None if d_hidden is None else (d_hidden * per_row).to(ctx.dtypes[0]),
            None if d_weight is None else _scaled(d_weight, scale, ctx.dtypes[1]),
            *(None,) * 5,
        )


def _scaled(d_weight_VC: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """d_weight · scale in `dtype`, without a second [V, C] in fp32 on the way."""
    if dtype == d_weight_VC.dtype:
        return d_weight_VC * scale
    scaled_VC = torch.empty_like(d_weight_VC, dtype=dtype)
    for block in blocks(d_weight_VC):
        scaled_VC[block] = d_weight_VC[block] * scale
    return scaled_VC


def _accumulate(
    hidden_TC: Tensor,
    weight_VC: Tensor,
    teacher: SparseTeacher,
    settings: ChunkSettings,
    losses_T: Tensor,
    d_hidden_TC: Tensor | None,
    d_weight_VC: Tensor | None,
) -> None:
    """Fill the losses, and the gradients of their sum if they are needed."""
    if settings.positions.numel() == 0:
        return
    shape = min(settings.token_chunk, settings.positions.numel()), weight_VC.shape[0]
    logits_buffer = torch.empty(shape, dtype=losses_T.dtype, device=hidden_TC.device)
    gradient_buffer = logits_buffer
    narrow = gradient_dtype(weight_VC.device, weight_VC.dtype, losses_T.dtype)
    if settings.in_triton and narrow != losses_T.dtype:
        gradient_buffer = torch.empty_like(logits_buffer, dtype=narrow)
    for chunk in teacher.chunks(settings, weight_VC.shape[0], losses_T.dtype):
        hidden_tC = hidden_TC[chunk.positions_t]
        logits_tV = head_logits(hidden_tC, weight_VC, out=logits_buffer[: hidden_tC.shape[0]])
        gradient_tV = gradient_buffer[: hidden_tC.shape[0]]
        losses_T[chunk.positions_t] = _losses_and_logit_gradient(logits_tV, gradient_tV, chunk, settings)
        if d_hidden_TC is not None:
            d_hidden_TC[chunk.positions_t] = times_head(gradient_tV, weight_VC, d_hidden_TC.dtype)
        if d_weight_VC is not None:
            accumulate_weight_gradient(d_weight_VC, gradient_tV, hidden_tC)


def _losses_and_logit_gradient(
    logits_tV: Tensor, gradient_tV: Tensor, chunk: TeacherChunk, settings: ChunkSettings
) -> Tensor:
    """The chunk's losses [t]; leaves the gradient of each with respect to its logits in `gradient_tV`."""
    if settings.in_triton:
        from arwkv_kernels.triton.sparse_kl import MOST_CANDIDATES, rows_in_triton

        if chunk.ids_tK.shape[1] <= MOST_CANDIDATES:
            return rows_in_triton(logits_tV, gradient_tV, chunk, settings.tail, settings.temperature)
    losses_t = _rows_in_torch(logits_tV, chunk, settings)
    if gradient_tV.dtype != logits_tV.dtype:
        gradient_tV.copy_(logits_tV)
    return losses_t


def _rows_in_torch(logits_tV: Tensor, chunk: TeacherChunk, settings: ChunkSettings) -> Tensor:
    """The losses [t]; replaces the logits by their gradient in place."""
    chosen_tK = logits_tV.gather(1, chunk.ids_tK).masked_fill_(~chunk.real_tK, -torch.inf)
    logits_tV.scatter_(1, chunk.ids_tK, -torch.inf)
    highest_t1 = logits_tV.amax(1, keepdim=True)
    highest_t1.masked_fill_(highest_t1.isinf(), 0.0)
    mass_t1 = logits_tV.sub_(highest_t1).exp_().sum(1, keepdim=True)
    rest_t = (highest_t1 + mass_t1.log()).squeeze(1)
    if settings.tail == "renormalize":
        rest_t = torch.full_like(rest_t, -torch.inf)
    log_q_tK, log_q_tail_t = soften(chosen_tK, rest_t, settings.temperature)
    log_p_tail_t = chunk.log_p_tail_t
    p_tail_t = log_p_tail_t.exp() if settings.tail == "bucket" else torch.zeros_like(log_p_tail_t)
    p_tK = chunk.log_p_tK.exp()
    mass_of_loss_t = p_tK.sum(1) + p_tail_t
    gradient_tK = (mass_of_loss_t[:, None] * log_q_tK.exp() - p_tK) / settings.temperature
    gradient_tK = torch.where(chunk.real_tK, gradient_tK, gradient_tK[:, :1])
    gradient_tail_t = (mass_of_loss_t * log_q_tail_t.exp() - p_tail_t) / settings.temperature
    logits_tV.mul_(gradient_tail_t[:, None] / mass_t1.clamp_min(torch.finfo(mass_t1.dtype).tiny))
    logits_tV.scatter_(1, chunk.ids_tK, gradient_tK)
    own_terms_tK = torch.where(p_tK > 0, p_tK * (chunk.log_p_tK - log_q_tK), 0.0)
    tail_term_t = torch.where(p_tail_t > 0, p_tail_t * (log_p_tail_t - log_q_tail_t), 0.0)
    return own_terms_tK.sum(1) + tail_term_t
