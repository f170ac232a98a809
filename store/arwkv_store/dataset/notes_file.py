"""The notes beside a dataset's or a run's data: read, and changed so that no writer's words are lost unseen.

A change is made to the bytes that are there, or not at all. A folder has a lock for that. S3 compares the object's ETag
itself; for other stores the bytes are compared before they are replaced, and two writers at the same instant could both
succeed. Some servers with an S3 interface ignore the condition.
"""

import errno
import os
import random
import stat
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Protocol

from arwkv_store.errors import NotFound, TryAgain, UsageError, storage_error
from arwkv_store.format.layout import DATASET_FILE, NOTES_FILE, RUN_FILE
from arwkv_store.format.notes import MAX_NOTES_BYTES, Notes, not_notes
from arwkv_store.places.commit import locked, storage_faults, write_anew
from arwkv_store.places.object_folder import ObjectFolder
from arwkv_store.places.retry import Passing

Change = Callable[[bytes], Notes]
"""From the bytes that are there (none without a file) to the notes that replace them. It may raise."""

MOST_RACES, MOST_PAUSE_S = 60, 0.4
"""How often a writer of an object may come too late, and the longest pause before it tries again."""


class NotesFile(Protocol):
    """The notes of one dataset or run."""

    def read(self) -> bytes:
        """The file's bytes; none without a file. Raises UnsupportedVersion for something that cannot be notes."""

    def change(self, change: Change) -> Notes:
        """Replace the notes, completely or not at all; `change` may be called again when another writer was first.

        Raises NotFound where there is neither a dataset nor a run, UsageError, TryAgain.
        """


class LocalNotes:
    """Beside dataset.json or a run's metrics. No symbolic link is followed."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._where = folder, f"{folder.name}/{NOTES_FILE}"

    def read(self) -> bytes:
        """The file's bytes; none without a file."""
        try:
            # O_NONBLOCK: opening a pipe must not wait for its writer.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
            with open(os.open(self._folder / NOTES_FILE, flags), "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise not_notes(self._where, "not a regular file")
                return file.read(MAX_NOTES_BYTES + 1)
        except (FileNotFoundError, NotADirectoryError):
            return b""
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise not_notes(self._where, error.strerror or "not a regular file") from error
            raise storage_error(self._where, error) from error

    def change(self, change: Change) -> Notes:
        """Replace the notes under the lock of the dataset or run."""
        anchors = (self._folder / name for name in (DATASET_FILE, RUN_FILE))
        anchor = next((path for path in anchors if path.is_file()), None)
        if anchor is None:
            raise self._nothing()
        with storage_faults(self._where), locked(anchor):
            if not anchor.exists():  # removed while this writer waited
                raise self._nothing()
            notes = change(self.read())
            write_anew(self._folder / NOTES_FILE, notes.to_bytes())
        return notes

    def _nothing(self) -> NotFound:
        return NotFound(f"{self._folder.name}: no {DATASET_FILE} or {RUN_FILE} there; name a dataset's or run's folder")


class ObjectNotes:
    """An object beside dataset.json."""

    def __init__(self, folder: ObjectFolder) -> None:
        self._folder = folder

    def read(self) -> bytes:
        """The object's bytes; none without an object."""
        try:
            return self._folder.read(NOTES_FILE, MAX_NOTES_BYTES)
        except NotFound:
            return b""

    def change(self, change: Change) -> Notes:
        """Replace the object if it is still the one that was changed; else change what is there now."""
        if not self._folder.attempt(partial(self._folder.exists, DATASET_FILE), DATASET_FILE):
            raise NotFound(f"{self._folder.uri}: no {DATASET_FILE} there; name a dataset's URI")
        for _ in range(MOST_RACES):
            etag = self._etag()  # before the bytes: if they are newer, the store refuses
            notes = change(self.read())
            if self._put(notes.to_bytes(), etag):
                return notes
            # Not longer each time, as after a fault: who has just lost would then lose to those who have not.
            time.sleep(random.uniform(0, MOST_PAUSE_S))
        where = f"{self._folder.uri}/{NOTES_FILE}"
        raise TryAgain(
            f"{where}: others changed it during each of {MOST_RACES} attempts; run the same command again later"
        )

    def _etag(self) -> str | None:
        """The ETag; None without an object, empty in a store that has none."""
        filesystem = self._folder.filesystem()
        filesystem.invalidate_cache()
        try:
            info = self._folder.attempt(partial(filesystem.info, self._folder.path(NOTES_FILE)), NOTES_FILE)
        except NotFound:
            return None
        return str(info.get("ETag", ""))

    def _put(self, raw: bytes, etag: str | None) -> bool:
        """Whether the bytes are there now. An answer may be lost, and fsspec takes refusals for faults."""
        knows_etags = self._folder.lists_from_a_name and etag
        condition = {"mode": "create"} if etag is None else {"IfMatch": etag} if knows_etags else {}
        put = partial(self._folder.filesystem().pipe_file, self._folder.path(NOTES_FILE), raw, **condition)
        try:
            self._folder.once(put, NOTES_FILE)
        except (FileExistsError, NotFound, Passing):
            return self.read() == raw
        return True


def notes_file(uri: str) -> NotesFile:
    """The notes of a dataset or run. Raises UsageError for a place whose notes are changed in another way."""
    if uri.startswith(("http://", "https://")):
        raise UsageError(f"{uri}: a service's notes are changed by PUT {uri}/notes; or name the folder or the bucket")
    if uri.startswith("hf://"):
        raise UsageError(f"{uri}: each note would be a commit on the Hub; write notes before store copy carries them")
    return ObjectNotes(ObjectFolder(uri)) if "://" in uri else LocalNotes(Path(uri))
