"""numba's compiler for the loops of this project, one set of options for all."""

import functools
from collections.abc import Callable
from typing import Any

# Reassociation lets sums vectorize. NaN keeps its meaning, so that a poisoned input stays visible.
_FAST = {"reassoc", "contract", "nsz", "arcp"}


@functools.cache
def can_compile() -> bool:
    """Whether numba is installed."""
    try:
        import numba  # noqa: F401 -- here: vLLM's CPU worker does not start in a process that has loaded it
    except ImportError:
        return False
    return True


def compile_loop(loop: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled on first call; cached next to its file or in the user's cache folder, if either can be written."""
    import numba

    options = {"nogil": True, "fastmath": _FAST, "error_model": "numpy"}
    try:
        compiled: Callable[..., Any] = numba.njit(loop, cache=True, **options)
    except RuntimeError:  # numba found no folder to write to
        compiled = numba.njit(loop, **options)
    return compiled
