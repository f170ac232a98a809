"""Retries of temporary faults: a limited number without progress, with growing pauses."""

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from arwkv_store.errors import TryAgain

ATTEMPTS = 6
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 5.0

Result = TypeVar("Result")


class Passing(Exception):
    """A temporary fault: a dropped connection, a timeout, or a busy server, which may request a pause of `wait_s`."""

    def __init__(self, message: str, *, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


def with_retries(operation: Callable[[], Result], what: str) -> Result:
    """The operation's result, tried up to ATTEMPTS times while it raises Passing. Raises TryAgain after the last."""
    for pause_s in pauses_s():
        try:
            return operation()
        except Passing as fault:
            last = fault
            time.sleep(max(pause_s, fault.wait_s))
    raise given_up(what, last)


def pauses_s() -> Iterator[float]:
    """Seconds to wait after each failed attempt; ±50% at random, so that many readers do not return at once."""
    for attempt in range(ATTEMPTS):
        yield min(FIRST_PAUSE_S * 2**attempt, LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)


def given_up(what: str, last: Exception) -> TryAgain:
    """The error after the last attempt."""
    return TryAgain(f"{what}: {last} ({ATTEMPTS} attempts without progress); run the same command again later")
