"""Fetches parts of a remote dataset in a thread before their reader comes to them."""

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any

from arwkv_store.errors import ArwkvError


class FetchAhead:
    """A thread that fetches the parts asked for, one after another, until the end of the block.

    Their bytes go to the cache on disk; memory holds a few pieces at a time. Errors are ignored here: the reader meets
    them again when it opens the part.
    """

    def __init__(self, fetch: Callable[[int], None], stop: threading.Event, most: int = 1) -> None:
        """`fetch` ends soon after `stop` is set. Of the parts asked for, at most the last `most` wait to be fetched."""
        self._fetch, self._stop, self._most = fetch, stop, most
        self._asked: queue.SimpleQueue[tuple[int, threading.Event] | None] = queue.SimpleQueue()
        self._ended: dict[int, threading.Event] = {}
        # A daemon thread: a server that does not answer must not delay the end of the process.
        self._thread = threading.Thread(target=self._run, name="fetch ahead", daemon=True)

    def ask(self, part: int) -> None:
        """Have this part fetched."""
        with contextlib.suppress(queue.Empty):
            while self._asked.qsize() >= self._most:
                if oldest := self._asked.get_nowait():
                    oldest[1].set()
        ended = self._ended[part] = threading.Event()
        self._asked.put((part, ended))

    def wait(self, part: int) -> None:
        """Return when the part is fetched or has failed; at once if it was not requested."""
        if ended := self._ended.pop(part, None):
            ended.wait()

    def _run(self) -> None:
        while (asked := self._asked.get()) is not None and not self._stop.is_set():
            part, ended = asked
            try:
                with contextlib.suppress(ArwkvError):
                    self._fetch(part)
            finally:
                ended.set()

    def __enter__(self) -> "FetchAhead":
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._asked.put(None)
