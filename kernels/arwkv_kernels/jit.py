"""numba's compiler for the loops of this project, one set of options for all."""

from collections.abc import Callable
from typing import Any

try:
    import numba
except ImportError:
    numba = None

# Reassociation lets sums vectorize. NaN keeps its meaning, so that a poisoned input stays visible.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


def can_compile() -> bool:
    """Whether numba is installed."""
    return numba is not None


def compile_loop(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first call; cached next to its file or in the user's cache folder, if either can be written."""
    options = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = numba.njit(loop, cache=True, **options)
    except RuntimeError:  # numba found no folder to write to
        compiled = numba.njit(loop, **options)
    return compiled
