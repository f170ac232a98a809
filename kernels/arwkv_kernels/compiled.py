"""The compiled CPU path: numba's loops under autograd, spread over as many threads as torch uses.

The loops release the interpreter lock, so plain threads run them in parallel. numba's own thread pool ignores torch's
thread count, and ends the process if two threads enter it at once.
N sequences, M tokens in all, H heads, D head size.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd.function import once_differentiable

from arwkv_kernels.arguments import WkvInputs, wants_gradient
from arwkv_kernels.loops import chunks, tokens

# More parts than threads, so that sequences of different lengths are distributed evenly.
PARTS_PER_THREAD = 4

# Below it the backward pass keeps one state per token, because the gradient of such decays would lose precision.
LOWEST_LOG_DECAY_OF_CHUNKS = -2.0

# With fewer state entries, a step ends before another thread has started.
ENTRIES_PER_THREAD = 1 << 18


def wkv7_compiled(
    inputs: WkvInputs, state_NHKV: Tensor, offsets: list[int] | None, scale: float, lowest_w: float
) -> tuple[Tensor, Tensor]:
    """Inputs [B, T, H, D] of any float dtype, state fp32 or fp64; correct for every log decay.

    `lowest_w`: the lowest of them. D must be even. Returns (o in the state's dtype, final state).
    """
    batch, length = inputs.r.shape[:2]
    bounds = [n * length for n in range(batch + 1)] if offsets is None else offsets
    chunk = 0
    if wants_gradient(*inputs, state_NHKV):
        chunk = tokens.CHUNK if lowest_w >= LOWEST_LOG_DECAY_OF_CHUNKS else 1
    o, final = _Compiled.apply(*inputs, state_NHKV, bounds, scale, chunk)  # type: ignore[no-untyped-call]  # torch
    return o, final


def wkv7_step_compiled(inputs: WkvInputs, state_BHKV: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """One token, without a gradient: inputs [B, H, D] of any float dtype. Returns (o in the state's dtype, new state).

    The loop over whole sequences, given sequences of one token each.
    """
    batch, heads, size = inputs.r.shape
    raised = WkvInputs(*(x.detach().to(state_BHKV.dtype) for x in inputs))
    raised = raised._replace(w=raised.w.exp(), r=raised.r if scale == 1.0 else raised.r * scale)
    o, final = (torch.empty(x.shape, dtype=x.dtype) for x in (raised.v, state_BHKV))
    kept = (_states(final[:0]), _array(o[:0]), 0)
    arrays = [*map(_array, raised), _states(state_BHKV), _states(final), o.numpy(), *kept, *_single_tokens(batch)]
    loop = tokens.forward_loop(size)
    step_pairs(lambda first, last: loop(*arrays, first, last), batch * heads, size)
    return o, final


def wkv7_step_compiled_in_place(inputs: WkvInputs, state_SHKV: Tensor, slots_B: Tensor, scale: float) -> Tensor:
    """One token of the sequences whose states lie in these slots; the states are changed. Returns o in their dtype."""
    batch, heads, size = inputs.r.shape
    raised = WkvInputs(*(x.detach().to(state_SHKV.dtype) for x in inputs))
    raised = raised._replace(w=raised.w.exp(), r=raised.r if scale == 1.0 else raised.r * scale)
    o = torch.empty(raised.v.shape, dtype=raised.v.dtype)
    arrays = [*map(_array, raised), *flat_states(state_SHKV), _array(slots_B.to(torch.int64)), o.numpy()]
    loop = tokens.step_loop(size)
    step_pairs(lambda first, last: loop(*arrays, first, last), batch * heads, size)
    return o


def flat_states(states_SHKV: Tensor) -> tuple[NDArray[Any], int]:
    """All states as one row [elements], which is their own memory, and the elements from one state's start to the next.

    Each state must be contiguous. What lies between two states is a part of the row, so that loops find contiguous
    pieces of it; an array with gaps would have strides that the compiler does not know.
    """
    stride = states_SHKV.stride(0)
    length = (len(states_SHKV) - 1) * stride + states_SHKV[0].numel()
    return states_SHKV.detach().as_strided((length,), (1,)).numpy(), stride


def step_pairs(run: Callable[[int, int], None], pairs: int, head_size: int) -> None:
    """Call `run(first, last)` for one token of 0..pairs-1, on several threads where that is faster."""
    if pairs * head_size * head_size < ENTRIES_PER_THREAD:
        run(0, pairs)
    else:
        _spread(run, pairs)


@lru_cache(maxsize=16)
def _single_tokens(batch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Offsets of `batch` sequences of one token, and where their checkpoints would begin."""
    return np.arange(batch + 1), np.zeros(batch, np.int64)


class _Layout(NamedTuple):
    """The start of each sequence's tokens and checkpoints."""

    offsets: NDArray[np.int64]
    first_checkpoint: NDArray[np.int64]
    checkpoints: int

    @classmethod
    def of(cls, offsets: list[int], chunk: int) -> _Layout:
        counts = [-(-(stop - start) // chunk) if chunk else 0 for start, stop in pairwise(offsets)]
        first = np.cumsum([0, *counts], dtype=np.int64)
        return cls(np.array(offsets, dtype=np.int64), first[:-1], int(first[-1]))


class _Compiled(torch.autograd.Function):
    @staticmethod
    # Any: autograd's context has no public type; arguments: the six inputs, state, offsets, scale, tokens of a chunk (0
    # where no backward pass follows).
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs, state, offsets, scale, chunk = WkvInputs(*arguments[:6]), *arguments[6:]
        decays = inputs._replace(w=inputs.w.detach().to(state.dtype).exp())
        layout = _Layout.of(offsets, chunk)
        heads, size = inputs.r.shape[2:]
        o = torch.empty(inputs.r.shape, dtype=state.dtype)
        final = torch.empty_like(state, memory_format=torch.contiguous_format)
        checkpoints = torch.empty(layout.checkpoints, heads, size, size, dtype=state.dtype)
        us = torch.empty_like(o if chunk else o[:0])
        arrays = [*_tokens(decays, state.dtype, scale), _states(state), _states(final), _array(o, tokens=True)]
        arrays += [_states(checkpoints), _array(us, tokens=True)]
        loop = tokens.forward_loop(size)
        _spread(
            lambda first, last: loop(*arrays, chunk, layout.offsets, layout.first_checkpoint, first, last),
            pairs=state.shape[0] * heads,
        )
        if chunk:
            ctx.save_for_backward(*decays, us, checkpoints)
            ctx.layout, ctx.scale, ctx.chunk, ctx.dtypes = layout, scale, chunk, [x.dtype for x in inputs]
        return o, final

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_o: Tensor, d_final: Tensor) -> tuple[Tensor | None, ...]:
        *saved, us, checkpoints = ctx.saved_tensors
        inputs = WkvInputs(*saved)
        heads, size = inputs.r.shape[2:]
        dtype = checkpoints.dtype
        gradients = WkvInputs(*(torch.empty(x.shape, dtype=dtype) for x in inputs))
        d_initial = torch.empty(d_final.shape, dtype=dtype)
        arrays = [*_tokens(inputs, dtype, ctx.scale), _array(us, tokens=True), _array(d_o, tokens=True)]
        arrays += [_states(d_final), _states(checkpoints)]
        results = [*(_array(x, tokens=True) for x in gradients), _states(d_initial)]
        loop = (chunks if ctx.chunk > 1 else tokens).backward_loop(size)
        _spread(
            lambda first, last: loop(*arrays, *results, ctx.layout.offsets, ctx.layout.first_checkpoint, first, last),
            pairs=d_final.shape[0] * heads,
        )
        if ctx.scale != 1.0:
            gradients.r.mul_(ctx.scale)
        return *(g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True)), d_initial, None, None, None


# Any: fp32 or fp64, as the state.
def _array(x: Tensor, *, tokens: bool = False) -> NDArray[Any]:
    """The tensor's memory as a C-contiguous array; token tensors [B, T, H, D] as [M, H, D]."""
    x = x.detach().contiguous()
    array: NDArray[Any] = (x.flatten(0, 1) if tokens else x).numpy()
    return array


def _states(x_NHKV: Tensor) -> NDArray[Any]:
    """States, one row for each."""
    return _array(x_NHKV.flatten(2))


def _tokens(inputs: WkvInputs, dtype: torch.dtype, scale: float) -> list[NDArray[Any]]:
    """r, exp(w), k, v, a, b as arrays, r scaled; `inputs.w` is exp(w) already."""
    raised = WkvInputs(*(x.detach().to(dtype) for x in inputs))
    raised = raised._replace(r=raised.r if scale == 1.0 else raised.r * scale)
    return [_array(x, tokens=True) for x in raised]


def _spread(run: Callable[[int, int], None], pairs: int) -> None:
    """Call `run(first, last)` over ranges that cover 0..pairs-1, on torch's number of threads."""
    threads = min(torch.get_num_threads(), pairs)
    if threads <= 1:
        run(0, pairs)
        return
    edges = np.linspace(0, pairs, min(pairs, threads * PARTS_PER_THREAD) + 1).astype(int).tolist()
    for done in [_threads(threads, os.getpid()).submit(run, *edge) for edge in pairwise(edges)]:
        done.result()


@lru_cache(maxsize=4)
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Kept between calls. The process number is part of the key because a forked child inherits no threads."""
    return ThreadPoolExecutor(count, thread_name_prefix=f"wkv7-{process}")
