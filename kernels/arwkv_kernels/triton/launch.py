"""Where the kernels are launched."""

from __future__ import annotations

import contextlib

import torch
import triton
from torch import Tensor

# Triton's interpreter computes nonsense in bf16.
INTERPRETED = bool(triton.knobs.runtime.interpret)


def in_fp32(v: Tensor) -> bool:
    """Whether fp32 values take configurations of their own; not under the interpreter, which multiplies all in fp32."""
    return v.dtype == torch.float32 and not INTERPRETED


def device_of(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current CUDA device, which need not be the tensors'."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
