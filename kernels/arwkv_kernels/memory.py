"""Memory that the C library keeps: on a CPU, a training step asks for the same large tensors again and again."""

import ctypes

# The parameters' numbers in glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; returns whether the C library does so.

    By default glibc returns each large block to the system, which clears every page again when a tensor needs it: a
    tenth of a training step's time. No effect with another C library, nor on a GPU's memory. (mallopt(3))
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl and macOS have none; Windows has no handle of the process
        return False
    options = {M_MMAP_MAX: 0, M_TRIM_THRESHOLD: 2**31 - 1, M_TOP_PAD: 64 << 20}
    return all(mallopt(option, value) == 1 for option, value in options.items())
