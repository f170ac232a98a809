"""Where the kernels are launched."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current CUDA device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
