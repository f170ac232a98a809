"""The recurrence and its gradient as loops that numba compiles; one call handles a range of (sequence, head) pairs.

A state row i (a key) is contiguous over the values j, so every inner loop is one vector operation; rows go four at a
time to keep the accumulators in registers. Forward keeps the state of every 16th token; backward replays 16 tokens
from it, then walks them in reverse with dS:

    dS += r doᵀ;  dr = S do;  dk = dS v;  dv = dSᵀ k;  db = dS u;  dw = exp(w)⊙rowsum(dS⊙S');  du = dSᵀ b
    da = S' du;   dS = diag(exp w) dS + a duᵀ              (S' the state before the token, u = S'ᵀ a)

All arrays are C-contiguous and of one dtype: tokens [M, H, D] with M all sequences' tokens end to end, states
[N, H, K, V], checkpoints [P, H, K, V] where sequence n owns the rows from `first_checkpoint[n]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    Floats = NDArray[np.floating[Any]]  # Any: fp32 or fp64, chosen by the caller
    Ints = NDArray[np.int64]

STEPS_PER_CHECKPOINT = 16

# Reassociation lets sums vectorise. NaN and infinity keep their meaning: a poisoned input stays visible.
_FLAGS = {"reassoc", "contract", "nsz", "arcp"}
_compile = numba.njit(fastmath=_FLAGS, cache=True, nogil=True, error_model="numpy", boundscheck=False)
