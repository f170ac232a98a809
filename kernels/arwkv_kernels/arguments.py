"""Checks of the arguments of `wkv7`, `wkv7_step` and `linear_sparse_kl`, done once.

Shape legend: B batch, T time, H heads, D head size (K key side, V value side of a state), N sequences.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class WkvInputs(NamedTuple):
    """The six inputs of the recurrence, all of one shape: [B, T, H, D], or [B, H, D] for a single step."""

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor
    a: Tensor
    b: Tensor


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The precision of state and arithmetic: fp64 for fp64 inputs, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def wants_gradient(*tensors: Tensor) -> bool:
    """Whether a backward pass can follow. An autograd function's `needs_input_grad` is true under `no_grad` too."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def check_inputs(inputs: WkvInputs, axes: str) -> None:
    """Refuse inputs that differ in shape or device, or are not floating point; `axes` is "BTHD" or "BHD"."""
    r = inputs.r
    if r.dim() != len(axes):
        raise ValueError(f"wkv7: r has shape {tuple(r.shape)}; expected [{', '.join(axes)}]")
    for name, tensor in zip(inputs._fields, inputs, strict=True):
        if tensor.shape != r.shape:
            raise ValueError(f"wkv7: {name} has shape {tuple(tensor.shape)}, r has {tuple(r.shape)}; make them equal")
        if tensor.device != r.device:
            raise ValueError(f"wkv7: {name} is on {tensor.device}, r on {r.device}; move them to one device")
        if tensor.dtype not in FLOAT_DTYPES:
            raise ValueError(f"wkv7: {name} is {tensor.dtype}; pass one of fp32, bf16, fp16, fp64")


def check_packing(shape: torch.Size, cu_seqlens: Tensor | None) -> int:
    """The number of sequences, after refusing offsets of the wrong kind; their values are not read."""
    if cu_seqlens is None:
        return shape[0]
    if shape[0] != 1:
        raise ValueError(f"wkv7: packed input has batch {shape[0]}; cu_seqlens needs batch 1, with sequences along T")
    if cu_seqlens.dim() != 1 or cu_seqlens.numel() < 2 or cu_seqlens.is_floating_point():
        raise ValueError(f"wkv7: cu_seqlens is {cu_seqlens.dtype} {tuple(cu_seqlens.shape)}; pass integers [N + 1]")
    return cu_seqlens.numel() - 1


def check_slots(inputs: WkvInputs, state: Tensor, slots: Tensor) -> None:
    """Refuse states that cannot be changed in place, and slots that are none of them.

    On a GPU the values of the slots are not read.
    """
    batch, heads, size = inputs.r.shape
    if wants_gradient(*inputs, state):
        raise ValueError("wkv7: a state changed in place has no gradient; leave slots out, or use torch.no_grad()")
    if tuple(state.shape[1:]) != (heads, size, size) or state.dim() != 4:
        raise ValueError(f"wkv7: state has shape {tuple(state.shape)}; expected [slots, {heads}, {size}, {size}]")
    if state.dtype != compute_dtype(inputs.r.dtype) or (len(state) and not state[0].is_contiguous()):
        raise ValueError(f"wkv7: state is {state.dtype} with strides {state.stride()}; each slot is a contiguous fp32")
    if state.device != inputs.r.device or slots.device != inputs.r.device:
        raise ValueError(f"wkv7: state is on {state.device}, slots on {slots.device}, inputs on {inputs.r.device}")
    if tuple(slots.shape) != (batch,) or slots.is_floating_point():
        raise ValueError(f"wkv7: slots are {slots.dtype} {tuple(slots.shape)}; pass integers [{batch}]")
    if not slots.is_cuda and batch and not 0 <= int(slots.min()) <= int(slots.max()) < len(state):
        raise ValueError(f"wkv7: slots {slots.tolist()} of a state with {len(state)} of them")


def sequence_offsets(length: int, cu_seqlens: Tensor | None) -> list[int] | None:
    """The packed sequences' bounds as a list [N + 1], or None for a padded batch.

    Raises ValueError unless `cu_seqlens` rises from 0 to `length`.
    """
    if cu_seqlens is None:
        return None
    offsets = [int(x) for x in cu_seqlens.tolist()]
    if offsets[0] != 0 or offsets[-1] != length or any(x > y for x, y in pairwise(offsets)):
        raise ValueError(f"wkv7: cu_seqlens {offsets} must rise from 0 to T={length}")
    return offsets


def require_offsets(length: int, cu_seqlens: Tensor | None) -> None:
    """The check of `sequence_offsets` on the offsets' device: on a GPU without waiting for it.

    On a GPU the error is CUDA's "device-side assert triggered", raised by a later call.
    """
    if cu_seqlens is not None:
        rises = (cu_seqlens[0] == 0) & (cu_seqlens[-1] == length) & (cu_seqlens.diff() >= 0).all()
        torch._assert_async(rises, f"wkv7: cu_seqlens must rise from 0 to T={length}")


def starting_state(inputs: WkvInputs, initial_state: Tensor | None, sequences: int) -> Tensor:
    """The state [N, H, K, V] before the first token, in the compute dtype; zeros by default."""
    heads, size = inputs.r.shape[-2:]
    shape = (sequences, heads, size, size)
    dtype = compute_dtype(inputs.r.dtype)
    if initial_state is None:
        return torch.zeros(shape, dtype=dtype, device=inputs.r.device)
    if tuple(initial_state.shape) != shape:
        raise ValueError(f"wkv7: state has shape {tuple(initial_state.shape)}; expected [N, H, K, V] = {shape}")
    if initial_state.device != inputs.r.device:
        raise ValueError(f"wkv7: state is on {initial_state.device}, inputs on {inputs.r.device}")
    return initial_state.to(dtype)


def lowest_log_decay(w: Tensor) -> float:
    """The smallest log decay, after refusing positive and NaN ones. Reads the tensor: on a GPU this waits for it."""
    if w.numel() == 0:
        return 0.0
    lowest, highest = (float(x) for x in torch.aminmax(w.detach()))
    if not highest <= 0.0:
        raise ValueError(
            f"wkv7: w reaches {highest:g}, but a log decay is at most 0; RWKV's CUDA kernels take log(-log decay) x, "
            "from which w = -exp(x)"
        )
    return lowest
