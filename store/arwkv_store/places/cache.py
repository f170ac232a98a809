"""A bounded folder of fetched files, named by the SHA-256 of their content, shared by every process that reads.

An interrupted download is continued from where it stopped. Only what a remote dataset gave is ever kept here, so
evicting a file never loses anything.
"""

import contextlib
import fcntl
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from arwkv_store.errors import CorruptShard, NotFound, TryAgain, UsageError, storage_error
from arwkv_store.format.file_hash import pieces_of, sha256_of
from arwkv_store.format.manifest import FileInfo
from arwkv_store.places.commit import write_all
from arwkv_store.places.retry import Passing, given_up, pauses_s
from arwkv_store.places.room import require_room

DEFAULT_FOLDER = Path("~/.cache/arwkv")
DEFAULT_MAX_BYTES = 64 << 30
AHEAD_SHARE = 4
"""A file is fetched ahead of a reader of part after part only if the cache can hold this many of its size."""
_PARTIAL, _RANGED = ".partial", ".ranged"
_OTHER_FOLDER = "or name another folder: ARWKV_CACHE, or for store verify TMPDIR"
_SIZE = re.compile(r"(\d{1,15})([KMGT]?)i?B?", re.IGNORECASE)

Stream = Callable[[int, int | None], Iterator[bytes]]
"""From a byte offset up to an end, or to the file's, its bytes in pieces. Raises Passing when the connection breaks."""


@dataclass(frozen=True)
class RangedFile:
    """A copy with holes. `fetch` fills (start, end) ranges, in which each byte is to be verified before its use."""

    path: Path
    fetch: Callable[[Sequence[tuple[int, int]]], None]


@dataclass(frozen=True)
class FileCache:
    """Where fetched files are kept, and how many bytes of them."""

    folder: Path
    max_bytes: int
    stop: threading.Event | None = None
    """Set to end fetching ahead of a reader; None for the reader's own fetches."""
    ahead_share: int = AHEAD_SHARE
    """A file is fetched ahead only if the cache can hold this many of its size."""

    @classmethod
    def of(cls, folder: Path | None, max_bytes: int | None) -> "FileCache":
        """The given cache, else ARWKV_CACHE and ARWKV_CACHE_BYTES, else the user's. Raises UsageError."""
        chosen = folder or Path(os.environ.get("ARWKV_CACHE") or DEFAULT_FOLDER)
        limit = _bytes_asked() if max_bytes is None else max_bytes
        return cls(chosen.expanduser(), limit)

    def ahead(self, stop: threading.Event, share: int) -> "FileCache":
        """The same for a thread that fetches before the reader does."""
        return replace(self, stop=stop, ahead_share=share)

    def fetch(self, file: FileInfo, stream: Stream, where: str) -> Path:
        """The local path of a copy that was verified when it was made. Raises CorruptShard if the remote file is gone
        or its bytes are wrong twice, TryAgain.
        """
        path, stream = self._path(file), self._stoppable(stream, file)
        with self._faults(where):
            if _touched(path, file):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.with_suffix(_PARTIAL)) as partial:
                # Another process may have finished it while this one waited for the lock.
                if not _touched(path, file):
                    self._evict(path)
                    missing_bytes = file.size_bytes - os.fstat(partial.fileno()).st_size
                    require_room(self.folder, missing_bytes, f"free disk space, {_OTHER_FOLDER}")
                    _download(partial, file, stream, where)
                    os.replace(partial.name, path)
                    self._evict(path)
        return path

    def ranged(self, file: FileInfo, stream: Stream, where: str) -> RangedFile | None:
        """A copy that is fetched range by range; None where the whole file is kept already. Raises as `fetch` does."""
        path, stream = self._path(file).with_suffix(_RANGED), self._stoppable(stream, file)
        with self._faults(where):
            if _touched(self._path(file), file):
                return None
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "ab") as opened:
                opened.truncate(file.size_bytes)

        def fetch(ranges: Sequence[tuple[int, int]]) -> None:
            with self._faults(where), open(path, "rb+", buffering=0) as to:
                for start, end in ranges:
                    _fill(to, start, end, stream, where)
                self._evict(path)

        return RangedFile(path, fetch)

    def _stoppable(self, stream: Stream, file: FileInfo) -> Stream:
        """The stream; ahead of a reader, one that ends with `stop` and never evicts what is being read."""
        if self.stop is None:
            return stream
        stop = self.stop
        if self.ahead_share * file.size_bytes > self.max_bytes:
            raise TryAgain(f"{file.name}: no room for it in the cache beside what is being read")

        def pieces(offset: int, end: int | None) -> Iterator[bytes]:
            for piece in stream(offset, end):
                if stop.is_set():
                    raise TryAgain(f"{file.name}: its reader has stopped")
                yield piece

        return pieces

    @contextlib.contextmanager
    def _faults(self, where: str) -> Iterator[None]:
        try:
            yield
        except NotFound as error:
            raise CorruptShard(f"{where}: missing, although its manifest exists; restore it at its source") from error
        except FileNotFoundError as error:
            raise CorruptShard(f"{error.filename}: evicted by another reader; raise ARWKV_CACHE_BYTES") from error
        except OSError as error:
            raise storage_error(
                f"keeping {where} in the cache {self.folder} (another one: ARWKV_CACHE, or for store verify TMPDIR)",
                error,
            ) from error

    def forget(self, file: FileInfo) -> None:
        """Remove the copy, so that the next `fetch` makes another."""
        self._path(file).unlink(missing_ok=True)
        self._path(file).with_suffix(_RANGED).unlink(missing_ok=True)

    def _path(self, file: FileInfo) -> Path:
        return self.folder / file.sha256[:2] / f"{file.sha256}.arrow"

    def _evict(self, keep: Path) -> None:
        """Remove the least recently used files until the rest fit; an open file lives on until it is closed."""
        entries = []
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                # A copy with holes takes what was fetched of it.
                entries.append((status.st_mtime_ns, min(status.st_size, 512 * status.st_blocks), path))
        excess = sum(size for _, size, _ in entries) - self.max_bytes
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if path != keep and (path.suffix != _PARTIAL or _abandoned(path)):
                path.unlink(missing_ok=True)
                excess -= size


def require_size(where: str, file: FileInfo, found: int) -> None:
    """Raise CorruptShard unless the remote file is as long as the committed one: no waiting makes up for that."""
    if found != file.size_bytes:
        raise CorruptShard(f"{where}: {found} bytes, committed with {file.size_bytes}; restore it at its source")


def _touched(path: Path, file: FileInfo) -> bool:
    """Whether the file is there in full; marks it as just used."""
    try:
        if path.stat().st_size != file.size_bytes:
            path.unlink(missing_ok=True)
            return False
        os.utime(path)
    except FileNotFoundError:
        return False
    return True


def _abandoned(partial: Path) -> bool:
    """Whether no process is downloading into it."""
    try:
        # Open for writing: NFS locks for writing only what is opened so.
        with open(partial, "rb+") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _bytes_asked() -> int:
    asked = os.environ.get("ARWKV_CACHE_BYTES") or str(DEFAULT_MAX_BYTES)
    size = _SIZE.fullmatch(asked.strip())
    if size is None:
        raise UsageError(f"ARWKV_CACHE_BYTES={asked}: not a size in bytes; write 68719476736 or 64G")
    return int(size[1]) << 10 * " KMGT".index(size[2].upper() or " ")


@contextlib.contextmanager
def _locked(partial: Path) -> Iterator[IO[bytes]]:
    """The partial file, opened for appending and locked against other processes fetching the same bytes."""
    while True:
        with open(partial, "ab+", buffering=0) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX)
            # The one who held the lock renamed the file away, or removed it: this descriptor is not of the partial one.
            try:
                current = os.stat(partial).st_ino == os.fstat(file.fileno()).st_ino
            except FileNotFoundError:
                current = False
            if current:
                yield file
                return


def _download(partial: IO[bytes], file: FileInfo, stream: Stream, where: str) -> None:
    for _ in range(2):
        have = partial.seek(0, os.SEEK_END)
        if have > file.size_bytes:
            partial.truncate(file.size_bytes)
        _fill(partial, have, file.size_bytes, lambda offset, _: stream(offset, None), where)
        partial.seek(0)
        found = sha256_of(pieces_of(partial))
        if found == file.sha256:
            os.fsync(partial.fileno())
            return
        partial.truncate(0)
    raise CorruptShard(
        f"{where}: fetched twice with SHA-256 {found}, committed as {file.sha256}; restore it at its source"
    )


def _fill(to: IO[bytes], have: int, end: int, stream: Stream, where: str) -> None:
    """Write bytes `have` to `end` at their place. Progress renews the attempts: a flaky line only has to move."""
    pauses, begun = pauses_s(), have
    while have < end:
        if have > begun:
            pauses, begun = pauses_s(), have
        to.seek(have)
        try:
            for piece in stream(have, end):
                if have == end:
                    # A server that ignores ranges sends what follows too.
                    return
                write_all(to, piece[: end - have])
                have = min(have + len(piece), end)
            if have == begun:
                raise Passing(f"ended at byte {have} of {end}")
        except Passing as fault:
            pause_s = next(pauses, None)
            if pause_s is None:
                raise given_up(where, fault) from fault
            if have == begun:
                time.sleep(max(pause_s, fault.wait_s))
