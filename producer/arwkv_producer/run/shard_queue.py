"""Encodes and writes parts on separate threads, while the engine captures the next."""

import queue
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from arwkv_store import Sample, ShardManifest, Writer

PARTS_WAITING = 1
"""Parts that may wait for a writer. A slow disk then holds the engine back, and memory does not grow."""


class ShardQueue:
    """Takes parts with `put`; `committed` is called (on a writer's thread, one at a time) after each commit.

    Each of `writers` threads processes one part; compression and files rarely hold Python's lock. A
    failed write is raised by the next `put`, or on leaving the `with` block, which waits for the parts that were put,
    unless KeyboardInterrupt ends it.
    """

    def __init__(self, writer: Writer, committed: Callable[[ShardManifest], None], writers: int = 1) -> None:
        self._writer, self._committed = writer, committed
        self._committing = threading.Lock()
        self._parts: queue.Queue[tuple[int, Sequence[Sample]] | None] = queue.Queue(PARTS_WAITING)
        self._failure: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._write_all, name=f"shard-writer-{number}", daemon=True)
            for number in range(writers)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, part: int, samples: Sequence[Sample]) -> None:
        """Wait for a free place, then add one part."""
        self._raise_failure()
        self._parts.put((part, samples))

    def _write_all(self) -> None:
        while (item := self._parts.get()) is not None:
            if self._failure is not None:
                continue  # keep the queue moving, so that a waiting `put` comes back and raises
            try:
                manifest = self._writer.write_shard(*item)
                with self._committing:
                    self._committed(manifest)
            except BaseException as failure:  # noqa: BLE001  # carried to the main thread, which raises it
                self._failure = failure

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            return  # at once: what is not committed is made again
        for _ in self._threads:
            self._parts.put(None)
        for thread in self._threads:
            thread.join()
        if error is None:
            self._raise_failure()
