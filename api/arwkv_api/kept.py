"""A cache of results up to a number of bytes; the least recently used are evicted first."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key, up to `limit_bytes` by `size_of`. A key holds all that its value is made from."""

    def __init__(self, limit_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._limit_bytes, self._size_of, self._size_bytes = limit_bytes, size_of, 0
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value for `key`, made where it is not kept."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        value = make()
        size_bytes = self._size_of(value)
        with self._lock:
            if key not in self._kept and size_bytes <= self._limit_bytes:
                self._kept[key] = value
                self._size_bytes += size_bytes
            while self._size_bytes > self._limit_bytes:
                _, dropped = self._kept.popitem(last=False)
                self._size_bytes -= self._size_of(dropped)
        return value
