"""Waiting for what the service does by itself, without sleeping longer than it takes."""

import time
from collections.abc import Callable
from typing import TypeVar

Answer = TypeVar("Answer")

# On a busy machine a look at the folders takes seconds, and the next one waits five times as long.
PATIENCE_S = 60.0


def eventually(check: Callable[[], Answer], patience_s: float = PATIENCE_S) -> Answer:
    """The first truthy answer of `check`, which is asked again until then."""
    deadline = time.monotonic() + patience_s
    while not (answer := check()):
        assert time.monotonic() < deadline, "did not happen"
        time.sleep(0.02)
    return answer
