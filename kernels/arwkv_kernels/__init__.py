"""The student's inner loops: the RWKV-7 recurrence and the distillation loss against sparse teacher distributions."""

from arwkv_kernels.backends import BackendChoice, backend_for
from arwkv_kernels.dispatch import wkv7, wkv7_step
from arwkv_kernels.sparse_kl import linear_sparse_kl
from arwkv_kernels.topk_logsumexp import TopK, TopKLogprobs, topk_logprobs, topk_logsumexp

__all__ = [
    "BackendChoice",
    "TopK",
    "TopKLogprobs",
    "backend_for",
    "linear_sparse_kl",
    "topk_logprobs",
    "topk_logsumexp",
    "wkv7",
    "wkv7_step",
]
