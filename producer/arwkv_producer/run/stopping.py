"""SIGTERM and Ctrl-C: after the first, the current part is committed; the second stops at once."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from arwkv_producer.run.account import Account

SIGNALS = (signal.SIGTERM, signal.SIGINT)


@contextmanager
def stop_requested(account: Account) -> Iterator[Callable[[], bool]]:
    """Inside the block the first signal says on stderr what is finished before the stop, and sets what the yielded
    function answers. The second raises KeyboardInterrupt, and so does the first before anything is captured."""
    asked: list[int] = []

    def ask(number: int, frame: FrameType | None) -> None:
        if asked or not account.capturing:
            raise KeyboardInterrupt
        asked.append(number)
        # Not print: the signal may have come while something is printed.
        os.write(2, f"\nproducer: {account.finishing()}; again to stop now\n".encode())

    before = {number: signal.signal(number, ask) for number in SIGNALS}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
