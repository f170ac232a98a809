"""How much of its time a service reads by itself: all shards verified once a week, within limits, and rests between."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from arwkv_api.index.orm import DatasetRow

# How long a verdict is valid for unchanged files.
HOLDS_S = 7 * 86_400.0
# The share of that time in which a pass over all shards is to end.
PASS_SHARE = 0.8
# Of the time that an indexed dataset is looked at again.
WORK_SHARE = 0.2
LEAST_BYTES_PER_S, MOST_BYTES_PER_S = 8e6, 200e6


@dataclass
class Pace:
    """Limits reading to `bytes_per_s` by waiting, until `stopping`."""

    bytes_per_s: float
    stopping: threading.Event
    _ahead_s: float = field(default=0.0, init=False)

    def __call__(self, size_bytes: int) -> None:
        self._ahead_s += size_bytes / self.bytes_per_s
        if self._ahead_s > 0.05:
            self.stopping.wait(self._ahead_s)
            self._ahead_s = 0.0


@dataclass
class Rest:
    """Called now and then by a thread that works for long: pauses it, so that it works at most WORK_SHARE of the time.

    Requests are answered by other threads of the same interpreter.
    """

    rested_s: float = 0.0
    _since_s: float = field(default_factory=time.thread_time, init=False)

    def __call__(self) -> None:
        began_s = time.monotonic()
        time.sleep((time.thread_time() - self._since_s) * (1 / WORK_SHARE - 1))
        self.rested_s += time.monotonic() - began_s
        self._since_s = time.thread_time()


def verification_rate(total_bytes: float, asked_mb_per_s: float | None) -> float:
    """Bytes a second at which shards of `total_bytes` are read: the setting, or else what one week needs."""
    if asked_mb_per_s is not None:
        return asked_mb_per_s * 1e6
    return min(max(total_bytes / (PASS_SHARE * HOLDS_S), LEAST_BYTES_PER_S), MOST_BYTES_PER_S)


def pass_days(total_bytes: float, bytes_per_s: float) -> float:
    """Days that one pass over all shards takes at this rate; 0 if nothing is verified."""
    return total_bytes / bytes_per_s / 86_400 if bytes_per_s else 0.0


def committed_bytes(session: Session, roots: Sequence[str]) -> float:
    """Bytes of all committed shards under the roots."""
    under = DatasetRow.root.in_(roots)
    return float(session.execute(select(func.coalesce(func.sum(DatasetRow.size_bytes), 0)).where(under)).scalar_one())
