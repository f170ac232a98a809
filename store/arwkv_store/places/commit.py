"""Publishing files so that nothing is visible before it is complete, and nothing acknowledged is ever lost.

A file is written under a temporary name, flushed to the disk, and given its name; then the folder is flushed. A part's
manifest comes last and is linked, never renamed over: the first commit wins. Where a file system has no hard links, it
is renamed under a lock where there is none. Publishing is serialized by a lock on
dataset.json, which the kernel releases when a process dies, so an abandoned data file can be replaced safely.
"""

import contextlib
import errno
import fcntl
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO

from arwkv_store.errors import TryAgain, storage_error

TEMPORARY_PREFIX = ".new-"
LOCK_FILE = ".lock"
"""Beside what is named on a file system without hard links."""
NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
"""How file systems say that they have none: exFAT, SMB, FUSE."""


class NotFlushed(OSError):
    """A complete file has its name, but the disk did not confirm the name."""


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[IO[bytes]]:
    """A new file in `folder` under a temporary name, locked while in use, and always removed at the end."""
    while True:
        path = folder / f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
        with open(path, "xb", buffering=0) as file:
            try:
                # remove_abandoned() leaves locked files alone: this one is being written.
                fcntl.flock(file.fileno(), fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:
                    yield file
                    return
                # Another process took it for abandoned before it was locked.
            finally:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(path)


def write_once(path: Path, content: bytes) -> bool:
    """Give `path` this content, durably, unless it exists; returns whether this call made it."""
    with temporary_file(path.parent) as file:
        write_all(file, content)
        os.fsync(file.fileno())
        if not _named(file.name, path):
            return False
    try:
        sync_folder(path.parent)
    except OSError as error:
        raise NotFlushed(error.errno, error.strerror, str(path)) from error
    return True


def write_anew(path: Path, content: bytes) -> None:
    """Give `path` this content, durably, in the place of what it had."""
    with temporary_file(path.parent) as file:
        write_all(file, content)
        os.fsync(file.fileno())
        os.replace(file.name, path)
    sync_folder(path.parent)


def _named(temporary: str, path: Path) -> bool:
    """Give a file its name unless it is taken; where there are no hard links, under a lock of the folder."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with open(path.parent / LOCK_FILE, "ab") as lock:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX)
            if path.exists():
                return False
            os.rename(temporary, path)
    return True


def publish(lock_on: Path, data: Mapping[Path, IO[bytes]], manifest_path: Path, manifest: bytes) -> bool:
    """Commit a part: its complete temporary data files by their final paths, then its manifest.

    Returns False, having changed nothing, when the part is already committed.
    """
    for file in data.values():
        os.fsync(file.fileno())
    with locked(lock_on):
        if manifest_path.exists():
            return False
        try:
            for path, file in data.items():
                os.replace(file.name, path)
            sync_folder(manifest_path.parent)
            return write_once(manifest_path, manifest)
        except OSError:
            _withdraw(data, manifest_path)
            raise


def _withdraw(data: Iterable[Path], manifest_path: Path) -> None:
    """Remove data files that were placed for a manifest that never came."""
    if not manifest_path.exists():
        for path in data:
            with contextlib.suppress(OSError):
                os.unlink(path)


def remove_abandoned(folder: Path) -> None:
    """Remove temporary files whose writers have died."""
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        # Open for writing: NFS locks for writing only what is opened so.
        with contextlib.suppress(OSError), open(path, "rb+") as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.unlink(path)


def sync_folder(folder: Path) -> None:
    """Make the folder's names durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create a folder and the parents it lacks, durably."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    try:
        folder.mkdir()
    except FileExistsError:
        # Another writer's, or no folder at all.
        if not folder.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
    sync_folder(folder.parent)


@contextlib.contextmanager
def storage_faults(what: str) -> Iterator[None]:
    """Turn the operating system's errors while writing into errors that say what to do."""
    try:
        yield
    except NotFlushed as error:
        raise TryAgain(
            f"{what}: {error.strerror}; {error.filename} is complete and named, but may be lost in a power failure: "
            "check the disk, then run store verify"
        ) from error
    except OSError as error:
        raise storage_error(what, error) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock on this file (a dataset's dataset.json) that publishing takes."""
    with open(path, "rb+", buffering=0) as file:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        yield


def write_all(file: IO[bytes], content: bytes | memoryview) -> None:
    """Write all of it: an unbuffered file may take less at a time."""
    view = memoryview(content)
    while view:
        view = view[file.write(view) :]
