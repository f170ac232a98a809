"""Answers kept while what they were made from is unchanged: many readers ask for the same pages of one dataset."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

KEPT_BYTES = 16 << 20


class Answers:
    """JSON by key, the longest unused dropped first. A key holds the dataset's revision: no answer goes stale."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self._limit_bytes, self._size_bytes = limit_bytes, 0
        self._kept: OrderedDict[Hashable, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """The answer for `key`, made where it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        answer = make()
        with self._lock:
            if key not in self._kept and len(answer) <= self._limit_bytes:
                self._kept[key] = answer
                self._size_bytes += len(answer)
            while self._size_bytes > self._limit_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._size_bytes -= len(dropped)
        return answer
