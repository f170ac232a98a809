"""vLLM's and torch's faults as one line that names the flags that help."""

from collections.abc import Iterator
from contextlib import contextmanager

from arwkv_store.errors import ArwkvError

SHORT_OF_MEMORY = ("out of memory", "outofmemory", "cache blocks", "kv cache", "gpu memory utilization")
"""What vLLM and torch say, in lower case, where a device's memory does not suffice."""


class EngineFailed(ArwkvError):
    """vLLM does not start with this teacher here, or ran out of memory."""


@contextmanager
def engine_faults(teacher: str) -> Iterator[None]:
    """Turn what vLLM and torch raise inside into EngineFailed, which names the flags that help."""
    try:
        yield
    except ArwkvError:
        raise
    except Exception as error:  # vLLM raises what its many parts raise
        said = f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]
        if any(sign in f"{type(error).__name__} {error}".lower() for sign in SHORT_OF_MEMORY):
            remedy = (
                "memory is short: try a smaller --step-tokens or --max-length, another --gpu-memory-fraction, "
                "--tensor-parallel with more devices, or a quantized teacher"
            )
        else:
            remedy = (
                "vLLM's own messages are above (--verbose shows all of them); --capture-backend stock may fit it better"
            )
        raise EngineFailed(f"--teacher {teacher}: vLLM failed ({said}); {remedy}") from error
