"""Writes the heartbeat of a process beside its data while it works. What prevents it is logged, and harms nothing."""

import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from arwkv_store.errors import TryAgain
from arwkv_store.format.heartbeat import Heartbeat, heartbeat_name
from arwkv_store.places.commit import temporary_file, write_all
from arwkv_store.places.object_folder import ObjectFolder

log = logging.getLogger(__name__)

EVERY_S, REMOTE_EVERY_S = 5.0, 30.0


class Pulse:
    """Use it in a `with` block: a thread writes the newest figures every few seconds, and the end how it ended.

    `place` is a folder that exists, or a URI. The Hub and services get no heartbeat: each would be a commit.
    """

    def __init__(self, place: str, **figures: Any) -> None:
        self._place, self._remote = place, "://" in place
        self._writes = not place.startswith(("hf://", "http://", "https://"))
        every_s = REMOTE_EVERY_S if self._remote else EVERY_S
        now_s = time.time()
        self._last = Heartbeat(
            state="running", host=socket.gethostname(), began_at_s=now_s, at_s=now_s, every_s=every_s, **figures
        )
        self._folder = ObjectFolder(place) if self._remote else None
        self._ended = threading.Event()
        self._changing = threading.Lock()
        self._process_id = os.getpid()
        self._thread = threading.Thread(target=self._beat_until_ended, name="heartbeat", daemon=True)
        self._said = False

    @property
    def last(self) -> Heartbeat:
        """What the next beat says."""
        return self._last

    def say(self, **figures: Any) -> None:
        """Take in newer figures, fields of Heartbeat; the next beat writes them."""
        with self._changing:
            self._last = Heartbeat.model_validate({**self._last.model_dump(), **figures})

    def failed(self, message: str) -> None:
        """Count an error that does not end the work."""
        self.say(errors=self._last.errors + 1, message=message[:2000])

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if os.getpid() != self._process_id:
            return  # a fork's copy
        self._ended.set()
        self._thread.join()
        stopped = isinstance(error, TryAgain | KeyboardInterrupt)
        self.say(state="finished" if error is None else "stopped" if stopped else "failed", left_s=None)
        if error is not None and not stopped:
            self.failed(f"{type(error).__name__}: {error}")
        self._write()

    def _beat_until_ended(self) -> None:
        while not self._ended.wait(self._last.every_s):
            self._write()

    def _write(self) -> None:
        if not self._writes:
            return
        self.say(at_s=time.time())
        name, content = heartbeat_name(self._last.process), self._last.to_bytes()
        try:
            if self._folder is not None:
                folder = self._folder
                folder.once(lambda: folder.filesystem().pipe_file(folder.path(name), content), name)
            else:
                _replace(Path(self._place) / name, content)
        except Exception as error:  # noqa: BLE001  # a heartbeat must not end the work that it tells of
            if not self._said:
                log.warning("%s: no heartbeat is written: %s", self._place, error)
            self._said = True


def _replace(path: Path, content: bytes) -> None:
    # Not flushed to the disk: after a power failure there is nothing to tell.
    with temporary_file(path.parent) as file:
        write_all(file, content)
        os.replace(file.name, path)
