"""Of processes that torchrun started together, the first speaks for all."""

import os
import sys


def is_first_process() -> bool:
    """Also true of a process that was started alone."""
    return os.environ.get("RANK", "0") == "0"


def say_once(message: str) -> None:
    """On stderr, also with several processes."""
    if is_first_process():
        print(message, file=sys.stderr)
